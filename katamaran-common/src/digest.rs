//! An order-free digest of packets that does not depend on how they are segmented.
//!
//! The digest of a set of packets is the sum, modulo 2^64, of what each contributes; so a loss and a
//! duplicate can't cancel out as they do in a counter, and order does not matter.
//!
//! - TCP data `[a, c)` contributes `h(flow, c) - h(flow, a)`. The sum telescopes: a super-packet
//!   contributes the same as the segments it is cut into, or was put together from.
//! - Each datagram of a UDP super-packet contributes for itself, as if already cut.
//! - Everything else contributes a hash of what no router or offload changes: addresses, protocol,
//!   identification, fragment, lengths, the L4 header without checksums, the first bytes behind it.
//!
//! Checksums, TTL and ECN are left out: routers and offloads change them.

use crate::packet::{Ip, L4, PacketRead, Step, protocol};

/// Most datagrams in a UDP super-packet (`UDP_MAX_SEGMENTS`; 64 before Linux 6.9).
pub const UDP_MAX_SEGMENTS: u32 = 128;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn absorb(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ (mixed >> 29)
}

#[inline(always)]
fn finish(state: u64) -> u64 {
    let mut mixed = state;
    mixed ^= mixed >> 33;
    mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^= mixed >> 33;
    mixed = mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[inline(always)]
fn pair(first: u32, second: u32) -> u64 {
    (u32::from_be(first) as u64) << 32 | u32::from_be(second) as u64
}

/// What the packet adds to the digest. `gso_size` is that of the skb it came in.
#[inline(always)]
pub fn contribution<R: PacketRead>(packet: &R, ip: &Ip, l4: &L4, gso_size: u32) -> u64 {
    let (from, to) = (&ip.source.words, &ip.destination.words);
    let mut base = absorb(MULTIPLIER, pair(from[0], from[1]));
    base = absorb(base, pair(from[2], from[3]));
    base = absorb(base, pair(to[0], to[1]));
    base = absorb(base, pair(to[2], to[3]));
    base = absorb(base, (u64::from(l4.ports) << 8) | u64::from(ip.protocol));

    if ip.protocol == protocol::TCP && l4.header != 0 && l4.payload != 0 {
        let end = l4.sequence.wrapping_add(l4.payload);
        return point(base, end).wrapping_sub(point(base, l4.sequence));
    }
    if ip.protocol == protocol::UDP && l4.header != 0 && gso_size != 0 && l4.payload > gso_size {
        return datagrams(packet, ip, l4, gso_size, base);
    }
    whole(packet, ip, l4, base)
}

#[inline(always)]
fn point(flow: u64, sequence: u32) -> u64 {
    finish(absorb(flow, u64::from(sequence)))
}

#[inline(always)]
fn datagrams<R: PacketRead>(packet: &R, ip: &Ip, l4: &L4, gso_size: u32, base: u64) -> u64 {
    let headers = ip.headers(l4);
    let mut state = Datagrams {
        sum: 0,
        base,
        id: ip.id,
        id_step: if ip.v4 { 1 } else { 0 },
        headers,
        start: ip.offset + headers,
        rest: l4.payload,
        gso_size,
    };
    packet.repeat(UDP_MAX_SEGMENTS, &mut state);
    state.sum
}

/// A UDP super-packet on its way through being cut.
struct Datagrams {
    sum: u64,
    base: u64,
    id: u32,
    /// Segmentation numbers the IPv4 packets consecutively; IPv6 has no number.
    id_step: u32,
    headers: u32,
    start: u32,
    rest: u32,
    gso_size: u32,
}

impl<R: PacketRead> Step<R> for Datagrams {
    #[inline(always)]
    fn step(&mut self, packet: &R) -> bool {
        if self.rest == 0 {
            return false;
        }
        let size = if self.rest < self.gso_size {
            self.rest
        } else {
            self.gso_size
        };
        let length = self.headers.wrapping_add(size);
        let contribution = datagram(packet, self.base, self.id, length, self.start, size);
        self.sum = self.sum.wrapping_add(contribution);
        self.start = self.start.wrapping_add(size);
        self.rest -= size;
        self.id = self.id.wrapping_add(self.id_step) & 0xffff;
        true
    }
}

#[inline(always)]
fn datagram<R: PacketRead>(
    packet: &R,
    base: u64,
    id: u32,
    length: u32,
    start: u32,
    size: u32,
) -> u64 {
    let state = absorb(base, (u64::from(id) << 32) | u64::from(length));
    finish(beginning(packet, state, start, size))
}

#[inline(always)]
fn whole<R: PacketRead>(packet: &R, ip: &Ip, l4: &L4, base: u64) -> u64 {
    if ip.protocol == protocol::UDP && l4.header != 0 {
        let start = ip.l4_offset + l4.header;
        return datagram(packet, base, ip.id, ip.length, start, l4.payload);
    }
    let mut state = absorb(base, (u64::from(ip.id) << 32) | u64::from(ip.length));
    if ip.fragment != 0 {
        state = absorb(state, u64::from(ip.fragment));
        // The first bytes may hold a checksum.
        let size = ip.body().saturating_sub(8);
        let size = if size < 8 { size } else { 8 };
        return finish(beginning(packet, state, ip.l4_offset + 8, size));
    }
    if l4.header != 0 {
        state = absorb(
            state,
            (u64::from(l4.sequence) << 32) | u64::from(l4.acknowledged),
        );
        return finish(absorb(state, u64::from(l4.control)));
    }
    if ip.protocol == protocol::ICMP || ip.protocol == protocol::ICMPV6 {
        if let Some(kind) = packet.half(ip.l4_offset) {
            state = absorb(state, u64::from(kind));
        }
        return finish(beginning(
            packet,
            state,
            ip.l4_offset + 4,
            ip.body().saturating_sub(4),
        ));
    }
    if ip.protocol == protocol::SCTP {
        state = beginning(packet, state, ip.l4_offset, 8);
        return finish(beginning(
            packet,
            state,
            ip.l4_offset + 12,
            ip.body().saturating_sub(12),
        ));
    }
    finish(beginning(packet, state, ip.l4_offset, ip.body()))
}

/// Absorbs the first 16 bytes at `start`, or as many of them as `size` has.
///
/// Always reads 16 bytes: where there are fewer, the 16 that end with them, and masks what stands
/// before (headers, so never outside the packet). A read of variable length would make the BPF verifier
/// track the exact range of everything the length depends on, through each turn of a loop.
#[inline(always)]
fn beginning<R: PacketRead>(packet: &R, state: u64, start: u32, size: u32) -> u64 {
    let at = if size < 16 {
        start.wrapping_add(size).wrapping_sub(16)
    } else {
        start
    };
    let words = packet.words::<4>(at).unwrap_or([0; 4]);
    let (mut first, mut second) = (pair(words[0], words[1]), pair(words[2], words[3]));
    if size < 16 {
        first = if size > 8 {
            first & (u64::MAX >> (8 * (16 - size)))
        } else {
            0
        };
    }
    if size < 8 {
        second = if size > 0 {
            second & (u64::MAX >> (8 * (8 - size)))
        } else {
            0
        };
    }
    absorb(absorb(state, first), second)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, parse_ip, parse_l4};

    fn digest(packet: &[u8], gso_size: u32) -> u64 {
        let ethertype = if packet[0] >> 4 == 4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        let ip = parse_ip(&packet, ethertype, 0, u32::try_from(packet.len()).unwrap()).unwrap();
        let l4 = parse_l4(&packet, &ip);
        contribution(&packet, &ip, &l4, gso_size)
    }

    fn sum(packets: &[Vec<u8>]) -> u64 {
        packets
            .iter()
            .fold(0, |sum, packet| sum.wrapping_add(digest(packet, 0)))
    }

    fn ip_packet(v6: bool, protocol: u8, id: u16, l4: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = u16::try_from(l4.len()).unwrap();
        if v6 {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend([0xfd; 16]);
            bytes.extend([0xfe; 16]);
        } else {
            bytes.extend([0x45, 0]);
            bytes.extend((length + 20).to_be_bytes());
            bytes.extend(id.to_be_bytes());
            bytes.extend([0x40, 0, 64, protocol, 0xaa, 0xbb, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        bytes.extend(l4);
        bytes
    }

    fn tcp(v6: bool, id: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut l4 = Vec::from([0x10, 0, 0x20, 0]);
        l4.extend(sequence.to_be_bytes());
        l4.extend([0, 0, 0, 9, 0x50, 0x10, 1, 0, 0xcc, 0xcc, 0, 0]);
        l4.extend(payload);
        ip_packet(v6, 6, id, &l4)
    }

    fn udp(v6: bool, id: u16, payload: &[u8]) -> Vec<u8> {
        let mut l4 = Vec::from([0x10, 0, 0x20, 0]);
        l4.extend((u16::try_from(payload.len()).unwrap() + 8).to_be_bytes());
        l4.extend([0xcc, 0xcc]);
        l4.extend(payload);
        ip_packet(v6, 17, id, &l4)
    }

    proptest! {
        #[test]
        fn a_tcp_super_packet_equals_its_segments(
            v6: bool, id: u16, sequence: u32, size in 1usize..500,
            payload in prop::collection::vec(any::<u8>(), 1..4000),
        ) {
            let whole = tcp(v6, id, sequence, &payload);
            let mut at = sequence;
            let mut parts = Vec::new();
            for (index, part) in (0u16..).zip(payload.chunks(size)) {
                parts.push(tcp(v6, id.wrapping_add(index), at, part));
                at = at.wrapping_add(u32::try_from(part.len()).unwrap());
            }
            prop_assert_eq!(digest(&whole, u32::try_from(size).unwrap()), sum(&parts));
            parts.reverse();
            prop_assert_eq!(digest(&whole, 0), sum(&parts));
        }

        #[test]
        fn a_udp_super_packet_equals_its_datagrams(
            v6: bool, id: u16, size in 60usize..500,
            payload in prop::collection::vec(any::<u8>(), 1..4000),
        ) {
            let whole = udp(v6, id, &payload);
            let parts: Vec<_> = (0u16..).zip(payload.chunks(size))
                .map(|(index, part)| udp(v6, id.wrapping_add(index), part)).collect();
            prop_assert_eq!(digest(&whole, u32::try_from(size).unwrap()), sum(&parts));
        }

        #[test]
        fn a_loss_or_a_duplicate_or_both_change_the_sum(
            v6: bool, kinds in prop::collection::vec(any::<bool>(), 2..20), lost: usize, twice: usize,
        ) {
            let packets: Vec<_> = (0u16..).zip(&kinds).map(|(index, data)| {
                if *data {
                    tcp(v6, index, u32::from(index) * 100, &[7; 100])
                } else {
                    udp(v6, index, &index.to_be_bytes())
                }
            }).collect();
            let all = sum(&packets);
            let lost = digest(&packets[lost % packets.len()], 0);
            let twice = digest(&packets[twice % packets.len()], 0);
            prop_assert_ne!(all.wrapping_sub(lost), all);
            prop_assert_ne!(all.wrapping_add(twice), all);
            if lost != twice {
                prop_assert_ne!(all.wrapping_sub(lost).wrapping_add(twice), all);
            }
        }
    }

    #[test]
    fn what_routers_and_offloads_change_does_not_count() {
        let mut packet = udp(false, 3, b"hello");
        let before = digest(&packet, 0);
        packet[1] = 3; // ECN
        packet[8] = 5; // TTL
        packet[10] = 1; // header checksum
        packet[26] = 1; // UDP checksum
        assert_eq!(digest(&packet, 0), before);
        packet[28] ^= 1; // payload
        assert_ne!(digest(&packet, 0), before);
    }

    #[test]
    fn padding_of_short_frames_does_not_count() {
        let packet = udp(false, 3, b"x");
        let mut padded = packet.clone();
        padded.resize(60, 0);
        assert_eq!(digest(&packet, 0), digest(&padded, 0));
    }
}
