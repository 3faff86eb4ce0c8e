//! The copy ring: the last frames that were passed to the tap, for what a stopped QEMU swallowed.

use core::ptr::{addr_of_mut, write_volatile};

use katamaran_common::layout::COPY_BYTES;

use crate::context::{Skb, opaque};
use crate::maps;

const LIMIT: u32 = COPY_BYTES as u32;
const _: () = assert!(LIMIT.is_power_of_two());

#[inline(always)]
pub(crate) fn keep(skb: &Skb) {
    let Some((slot, number)) = maps::copy_slot() else {
        return;
    };
    let length = skb.length();
    let captured = if length > LIMIT { LIMIT } else { length };
    if captured == 0 {
        return;
    }
    // Changes nothing; older verifiers (6.1) learn a lower bound from arithmetic, not from a comparison.
    let captured = (opaque(captured - 1) & (LIMIT - 1)) + 1;
    // SAFETY: a valid element; frames less than a ring apart have different ones.
    unsafe {
        // A reader that sees 0 knows that the slot is being written.
        write_volatile(addr_of_mut!((*slot).number), 0);
        if skb
            .copy_to(0, addr_of_mut!((*slot).bytes).cast(), captured)
            .is_none()
        {
            return;
        }
        (*slot).length = length;
        (*slot).captured = captured;
        (*slot).gso_size = skb.gso_size();
        write_volatile(addr_of_mut!((*slot).number), number);
    }
}
