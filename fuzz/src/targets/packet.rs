//! Packets as the programs in the kernel see them.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use katamaran_common::digest::contribution;
use katamaran_common::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, L4, parse_ip, parse_l4, protocol,
};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "packet",
    run,
    base: 16 << 10,
    per_byte: 8,
};

/// As long as an Ethernet header.
const SHIFT: u32 = 14;

fn run(bytes: &[u8]) {
    let Some(([g0, g1], packet)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let gso_size = u32::from(u16::from_be_bytes([*g0, *g1]));
    let room = u32::try_from(packet.len()).expect("inputs are short");
    for ethertype in [ETHERTYPE_IPV4, ETHERTYPE_IPV6] {
        let Some(ip) = parse_ip(&packet, ethertype, 0, room) else {
            continue;
        };
        let l4 = parse_l4(&packet, &ip);
        let digest = contribution(&packet, &ip, &l4, gso_size);
        consistent(&ip, &l4);
        agrees(packet, &ip, &l4);

        // Where the packet lies does not matter.
        let shifted = [&[0xa5; SHIFT as usize], packet].concat();
        let shifted = &shifted[..];
        let there = parse_ip(&shifted, ethertype, SHIFT, room).expect("it is the same packet");
        assert_eq!((there.id, there.length), (ip.id, ip.length));
        assert_eq!(parse_l4(&shifted, &there), l4);
        // A length that lies lets the digest see what stands before or behind.
        if ip.length <= room {
            let other = contribution(&shifted, &there, &l4, gso_size);
            assert_eq!(other, digest, "{ip:?} {l4:?}");
        }
    }
}

/// The parts fit together.
fn consistent(ip: &Ip, l4: &L4) {
    assert!(ip.l4_offset - ip.offset >= if ip.v4 { 20 } else { 40 });
    assert_eq!(l4.header + l4.payload, ip.body());
    if ip.fragment != 0 {
        assert_eq!(l4.header, 0);
    }
    assert_eq!(ip.headers(l4) + l4.payload, ip.length.max(ip.headers(l4)));
}

/// Where another parser finds nothing wrong with a packet, it finds the same in it.
fn agrees(packet: &[u8], ip: &Ip, l4: &L4) {
    let Ok(sliced) = SlicedPacket::from_ip(packet) else {
        return;
    };
    match &sliced.net {
        Some(NetSlice::Ipv4(v4)) if ip.v4 => {
            let header = v4.header();
            assert_eq!(ip.source.bytes()[12..], header.source());
            assert_eq!(ip.destination.bytes()[12..], header.destination());
            assert_eq!(ip.id, u32::from(header.identification()));
            assert_eq!(ip.fragment != 0, header.is_fragmenting_payload());
            assert_eq!(ip.l4_offset, u32::from(header.ihl()) * 4);
        }
        Some(NetSlice::Ipv6(v6)) if !ip.v4 => {
            assert_eq!(ip.source.bytes(), v6.header().source());
            assert_eq!(ip.destination.bytes(), v6.header().destination());
        }
        _ => return,
    }
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) if ip.protocol == protocol::TCP && ip.fragment == 0 => {
            assert_eq!(usize::try_from(l4.header), Ok(tcp.header_len()));
            assert_eq!(l4.sequence, tcp.sequence_number());
            assert_eq!(l4.ports.to_ne_bytes()[..2], tcp.source_port().to_be_bytes());
            assert_eq!(usize::try_from(l4.payload), Ok(tcp.payload().len()));
        }
        Some(TransportSlice::Udp(udp)) if ip.protocol == protocol::UDP && ip.fragment == 0 => {
            assert_eq!(l4.header, 8);
            assert_eq!(
                l4.ports.to_ne_bytes()[2..],
                udp.destination_port().to_be_bytes()
            );
        }
        _ => {}
    }
}
