//! Atomic addition. The Rust target knows no read-modify-write atomics; the machine does (v3).

use core::arch::asm;

/// Adds to a shared counter and returns what it was before.
///
/// # Safety
///
/// `counter` must be a valid, aligned map value that everyone changes through this function.
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, amount: u64) -> u64 {
    let mut value = amount;
    // SAFETY: one instruction, on memory the caller vouches for (and the verifier checks).
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            value = inout(reg) value,
            counter = in(reg) counter,
            options(nostack),
        );
    }
    value
}
