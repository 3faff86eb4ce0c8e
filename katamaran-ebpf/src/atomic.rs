//! Atomic changes of map values. The Rust target knows no read-modify-write atomics; the machine does (v3).

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

/// Sets a shared value to `new` if it is `expected`, and returns what it was before.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange(value: *mut u64, expected: u64, new: u64) -> u64 {
    let mut before = expected;
    // SAFETY: as in `fetch_add`. The instruction compares with, and returns in, r0 (kernel
    // Documentation/bpf/standardization/instruction-set.rst, "Atomic operations").
    unsafe {
        asm!(
            "r0 = cmpxchg_64({value} + 0, r0, {new})",
            value = in(reg) value,
            new = in(reg) new,
            inout("r0") before,
            options(nostack),
        );
    }
    before
}
