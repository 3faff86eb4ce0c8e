//! The ring of retained packets: what was redirected since the flip, for a VM that goes on here after all.

use core::mem::MaybeUninit;
use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use katamaran_common::layout::Retained;
use katamaran_common::packet::ETHERNET_LENGTH;

use crate::context::{Skb, opaque};
use crate::maps;

/// A packet of at most so many bytes. The kernel wants to know a record's size when the program is loaded, so there
/// are a few of them, and a packet takes the smallest that it fits.
#[repr(C)]
struct Record<const BYTES: usize> {
    head: Retained,
    bytes: [u8; BYTES],
}

/// Copies a packet of `length` bytes from its IP header on. `None` when there is no room.
#[inline(always)]
pub(crate) fn keep(skb: &Skb, length: u32, gso_size: u32) -> Option<()> {
    let head = Retained {
        length,
        gso_size,
        ethernet: skb.load(0)?,
        _pad: [0; 2],
    };
    match length {
        1..=128 => write::<128>(skb, head),
        129..=512 => write::<512>(skb, head),
        513..=2048 => write::<2048>(skb, head),
        2049..=16_384 => write::<16_384>(skb, head),
        16_385..=65_536 => write::<65_536>(skb, head),
        // No packet, or one of BIG TCP.
        _ => None,
    }
}

#[inline(always)]
fn write<const BYTES: usize>(skb: &Skb, head: Retained) -> Option<()> {
    let limit = const {
        assert!(BYTES.is_power_of_two());
        BYTES as u32
    };
    let mut entry = maps::retained::<Record<BYTES>>()?;
    let record = MaybeUninit::as_mut_ptr(&mut entry);
    // Changes nothing; older verifiers (6.1) learn a lower bound from arithmetic, not from a comparison.
    let length = (opaque(head.length - 1) & (limit - 1)) + 1;
    // SAFETY: room for a record; the length is one of its array's.
    let copied = unsafe {
        addr_of_mut!((*record).head).write(head);
        skb.copy_to(
            ETHERNET_LENGTH,
            addr_of_mut!((*record).bytes).cast(),
            length,
        )
    };
    match copied {
        Some(()) => entry.submit(u64::from(BPF_RB_NO_WAKEUP)),
        None => entry.discard(u64::from(BPF_RB_NO_WAKEUP)),
    }
    copied
}
