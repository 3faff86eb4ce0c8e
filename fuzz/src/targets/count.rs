//! Counting: packets of a super-packet, as the kernel's side and as ours does it, and running numbers.

use katamaran::net::packet::VnetHeader;
use katamaran_common::layout::Sequence;
use katamaran_common::segments::{count_of, wire_segments};
use katamaran_common::sequence::{NUMBER_BITS_V4, NUMBER_BITS_V6, jump};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "count",
    run,
    base: 4 << 10,
    per_byte: 0,
};

fn run(bytes: &[u8]) {
    if let Some((header, rest)) = bytes.split_first_chunk::<10>() {
        segments(*header, rest.len());
    }
    for bits in [NUMBER_BITS_V4, NUMBER_BITS_V6] {
        numbers(bytes, bits);
    }
}

/// A frame with this virtio header, `length` bytes behind its headers.
fn segments(header: [u8; 10], length: usize) {
    let headers = u16::from_le_bytes([header[2], header[3]]);
    let size = u16::from_le_bytes([header[4], header[5]]);
    let payload = u32::try_from(length).expect("inputs are short");
    let ours = VnetHeader(header).wire_segments(usize::from(headers) + length);
    let size = if header[1] == 0 { 0 } else { u32::from(size) };
    let theirs = wire_segments(0, size, payload);
    assert_eq!(ours, u64::from(theirs));

    let count = count_of(theirs, payload + u32::from(headers), headers.into());
    let cut: u64 = (0..theirs)
        .map(|at| {
            let rest = u64::from(payload) - u64::from(at) * u64::from(size);
            u64::from(headers)
                + if size == 0 {
                    rest
                } else {
                    rest.min(size.into())
                }
        })
        .sum();
    assert_eq!((count.packets, count.bytes), (u64::from(theirs), cut));
}

/// Each pair of bytes is a step, forward or back, and how many packets come there.
fn numbers(bytes: &[u8], bits: u32) {
    let mut sequence = Sequence::default();
    let (mut at, mut next, mut seen) = (0_i64, 0_i64, 0_i64);
    for pair in bytes.chunks_exact(2) {
        let packets = i64::from(pair[1] % 8 + 1);
        // Farther back than half a turn, it can't be told from ahead; what comes late was sent before.
        at = (at + i64::from(pair[0].cast_signed()))
            .max(next - (1 << (bits - 2)))
            .max(0);
        let late = at < next;
        let packets = if late {
            packets.min(next - at)
        } else {
            packets
        };
        let number = u32::try_from(at & ((1 << bits) - 1)).expect("it has few bits");
        let jumped = jump(sequence.next, number, bits);
        assert_eq!(jumped.is_none(), late);
        if let Some(skipped) = jumped {
            sequence.next += skipped + packets.unsigned_abs();
        }
        sequence.seen += packets.unsigned_abs();
        seen += packets;
        next = next.max(at + packets);
        at += packets;
    }
    assert_eq!(sequence.missing(), next - seen);
}
