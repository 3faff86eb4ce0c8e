//! Counting: packets of a super-packet, as the kernel's side and as ours does it, and running numbers.

use katamaran::net::packet::VnetHeader;
use katamaran_common::layout::Sequence;
use katamaran_common::segments::{count_of, wire_segments};
use katamaran_common::sequence::{NUMBER_BITS_V4, NUMBER_BITS_V6};

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
    let (mut at, mut seen) = (1_i64 << 40, 0);
    let mut whole: Option<(i64, i64)> = None;
    for pair in bytes.chunks_exact(2) {
        let step = i64::from(pair[0].cast_signed());
        let packets = i64::from(pair[1] % 8 + 1);
        at += step;
        let (first, next) = whole.unwrap_or((at, at));
        // Farther back than half a turn, it can't be told from ahead; what comes late was sent before.
        at = at.max(next - (1 << (bits - 2)));
        let late = at < next;
        let packets = if late {
            packets.min(next - at)
        } else {
            packets
        };
        let number = u32::try_from(at & ((1 << bits) - 1)).expect("it has few bits");
        sequence.note(number, u32::try_from(packets).expect("they are few"), bits);
        seen += packets;
        whole = Some((first.min(at), next.max(at + packets)));
        at += packets;
    }
    let (first, next) = whole.unwrap_or((0, 0));
    assert_eq!(sequence.missing(), next - first - seen);
}
