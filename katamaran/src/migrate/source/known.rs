//! Which packets the VM has, by what is the same of them on both nodes.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::frame::{complete_checksum, on_the_wire};
use crate::net::packet::VnetHeader;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Packets, as often as they came.
#[derive(Debug, Default)]
pub(crate) struct Known(HashMap<u64, u32>);

impl Known {
    pub(crate) fn add(&mut self, fingerprint: u64) {
        *self.0.entry(fingerprint).or_default() += 1;
    }

    /// What a frame is on the wire.
    pub(crate) fn add_all(&mut self, header: VnetHeader, frame: &[u8]) {
        for packet in packets(header, frame) {
            self.add(fingerprint(&packet));
        }
    }

    /// Those that are none of them.
    pub(crate) fn without(&mut self, mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        packets.retain(|packet| !self.take(fingerprint(packet)));
        packets
    }

    /// Whether it is one of them; then there is one less.
    pub(crate) fn take(&mut self, fingerprint: u64) -> bool {
        let count = self.0.get_mut(&fingerprint);
        count.is_some_and(|count| match *count {
            0 => false,
            _ => {
                *count -= 1;
                true
            }
        })
    }
}

/// What is the same of a packet on both nodes: all behind the Ethernet header, with the checksum that it has on a wire.
pub(crate) fn fingerprint(frame: &[u8]) -> u64 {
    let mut frame = frame.to_vec();
    complete_checksum(&mut frame);
    let mut hasher = DefaultHasher::new();
    frame.get(ETHERNET..).hash(&mut hasher);
    hasher.finish()
}

/// What a frame is on the wire: itself, or the segments of a super-packet, if it can be cut.
pub(crate) fn packets(header: VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    on_the_wire(frame.to_vec(), header.segment_size()).unwrap_or_else(|| vec![frame.to_vec()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u16 = 100;

    /// A TCP super-packet with so many bytes of payload, and the header that says so.
    fn super_packet(payload: usize) -> (VnetHeader, Vec<u8>) {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let length = u16::try_from(40 + payload).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
        frame.extend([0, 0, 0, 0]);
        frame.extend((0..payload).map(|at| u8::try_from(at / 100).unwrap()));
        let mut header = VnetHeader::default();
        // VIRTIO_NET_HDR_GSO_TCPV4, and gso_size (include/uapi/linux/virtio_net.h).
        header.0[1] = 1;
        header.0[4..6].copy_from_slice(&SEGMENT.to_le_bytes());
        (header, frame)
    }

    #[test]
    fn of_a_super_packet_that_the_vm_has_in_part_only_the_rest_is_left() {
        let (header, frame) = super_packet(350);
        let all = packets(header, &frame);
        assert_eq!(all.len(), 4);
        let mut had = Known::default();
        assert_eq!(had.without(all.clone()), all);
        // As copies are: each segment by itself, and the Ethernet header another node's.
        for segment in &all[1..3] {
            let mut segment = segment.clone();
            segment[..12].fill(9);
            had.add_all(VnetHeader::default(), &segment);
        }
        let rest = had.without(all.clone());
        assert_eq!(rest, [all[0].clone(), all[3].clone()]);
        assert_eq!(had.without(all.clone()), all, "each of them once");
    }
}
