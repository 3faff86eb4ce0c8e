//! The outer header: IPIP for v4, IP6IP6 for v6, or GRE over either, written by the program itself.
//!
//! `bpf_skb_adjust_room` with the ENCAP flags keeps super-packets whole: it marks the skb as
//! encapsulated and adds `SKB_GSO_IPXIP4`/`6` (or `SKB_GSO_GRE`), so that segmentation repeats all headers. With
//! `FIXED_GSO` the segment size stays; without it the kernel takes the outer header's length off it,
//! which is right for TCP (segments have no meaning) and refused for UDP (they are datagrams).

use katamaran_common::layout::{Config, encap};
use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, Ip, L4, protocol,
};

use crate::context::Skb;
use crate::maps;

/// `BPF_F_ADJ_ROOM_FIXED_GSO`
pub(crate) const FIXED_GSO: u64 = 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4`
const ENCAP_L3_IPV4: u64 = 1 << 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV6`
const ENCAP_L3_IPV6: u64 = 1 << 2;

/// `BPF_F_ADJ_ROOM_ENCAP_L4_GRE`
const ENCAP_L4_GRE: u64 = 1 << 3;

/// A GRE header without options.
pub(crate) const GRE_LENGTH: u32 = 4;

/// How long an outer packet lives.
const TTL: u8 = 64;

/// How a packet gets to D.
#[derive(Clone, Copy)]
pub(crate) enum Fit {
    /// Encapsulated, segments as they are.
    AsIs,
    /// Encapsulated, TCP segments smaller than they are.
    Smaller { gso_size: u32 },
    /// Through a tunnel device.
    Device { ifindex: u32 },
    /// Not at all.
    TooBig,
}

#[inline(always)]
fn overhead(config: &Config, ip: &Ip) -> u32 {
    let outer = if ip.v4 { IPV4_LENGTH } else { IPV6_LENGTH };
    outer + gre_length(config)
}

/// Bytes of GRE behind the outer IP header.
#[inline(always)]
pub(crate) fn gre_length(config: &Config) -> u32 {
    if config.encap == encap::GRE {
        GRE_LENGTH
    } else {
        0
    }
}

#[inline(always)]
pub(crate) fn fit(config: &Config, ip: &Ip, l4: &L4, gso_size: u32) -> Fit {
    let overhead = overhead(config, ip);
    let largest = config.path_mtu.saturating_sub(overhead);
    let headers = ip.headers(l4);
    let length = if gso_size == 0 {
        ip.length
    } else {
        headers + gso_size
    };
    if length <= largest {
        return Fit::AsIs;
    }
    if gso_size > overhead && ip.protocol == protocol::TCP {
        // What bpf_skb_net_grow() makes of it without FIXED_GSO.
        let gso_size = gso_size - overhead;
        if headers + gso_size <= largest {
            return Fit::Smaller { gso_size };
        }
    }
    if config.oversize_ifindex != 0 {
        return Fit::Device {
            ifindex: config.oversize_ifindex,
        };
    }
    Fit::TooBig
}

#[inline(always)]
fn flags(keep_size: bool) -> u64 {
    if keep_size { FIXED_GSO } else { 0 }
}

/// Puts the outer header in front. On `None` the packet is as it was.
#[inline(always)]
pub(crate) fn encapsulate(
    skb: &Skb,
    config: &Config,
    ip: &Ip,
    segments: u32,
    is_super: bool,
    keep_size: bool,
) -> Option<()> {
    let gre = gre_length(config);
    let flags = if gre == 0 {
        flags(keep_size)
    } else {
        flags(keep_size) | ENCAP_L4_GRE
    };
    // A super-packet's own length field may be 0, a short frame may be padded.
    let inner = if is_super {
        skb.length() - ETHERNET_LENGTH
    } else {
        ip.length
    };
    if ip.v4 {
        if config.families & 1 == 0 {
            return None;
        }
        let room = (IPV4_LENGTH + gre) as i32;
        skb.adjust_room(room, flags | ENCAP_L3_IPV4)?;
        let number = maps::take_numbers(0, segments);
        let header = outer_v4(config, inner + gre, ip.traffic_class, number as u16);
        write(skb, config, &header, ETHERTYPE_IPV4, -room)
    } else {
        if config.families & 2 == 0 {
            return None;
        }
        let room = (IPV6_LENGTH + gre) as i32;
        skb.adjust_room(room, flags | ENCAP_L3_IPV6)?;
        let number = maps::take_numbers(1, segments);
        let header = outer_v6(config, inner + gre, ip.traffic_class, number as u32);
        write(skb, config, &header, ETHERTYPE_IPV6, -room)
    }
}

#[inline(always)]
fn write<const N: usize>(
    skb: &Skb,
    config: &Config,
    header: &[u32; N],
    ethertype: u16,
    undo: i32,
) -> Option<()> {
    // bpf_redirect_neigh drops frames whose Ethernet destination is a group address.
    let written = skb
        .store(ETHERNET_LENGTH, header)
        .and_then(|()| write_gre(skb, config, N as u32 * 4, ethertype))
        .and_then(|()| skb.store(0, &config.vm_mac()));
    if written.is_none() {
        // Nothing more can be done if this fails too: the packet is passed on either way.
        let _ = skb.adjust_room(undo, FIXED_GSO);
        return None;
    }
    // Marks belong to the inner packet's policy; the outer one must not be routed by them.
    skb.set_mark(0);
    Some(())
}

/// No checksum, no key, no number: what is in it, and nothing else.
#[inline(always)]
fn write_gre(skb: &Skb, config: &Config, outer: u32, ethertype: u16) -> Option<()> {
    if config.encap != encap::GRE {
        return Some(());
    }
    skb.store(ETHERNET_LENGTH + outer, &u32::from(ethertype).to_be())
}

/// The protocol that the outer IP header names.
#[inline(always)]
pub(crate) fn carried(config: &Config, plain: u8) -> u8 {
    if config.encap == encap::GRE {
        protocol::GRE
    } else {
        plain
    }
}

/// A length field: 0 means "as long as the buffer", as for the kernel's own large super-packets.
#[inline(always)]
fn length_field(length: u32) -> u32 {
    if length > 0xffff { 0 } else { length }
}

#[inline(always)]
fn outer_v4(config: &Config, inner: u32, traffic_class: u8, number: u16) -> [u32; 5] {
    let length = length_field(inner + IPV4_LENGTH);
    let first = 0x4500_0000 | u32::from(traffic_class) << 16 | length;
    // Don't fragment: D's hook sees packets before they are put together again.
    let second = u32::from(number) << 16 | 0x4000;
    let third = u32::from(TTL) << 24 | u32::from(carried(config, protocol::IPIP)) << 16;
    let from = config.local4.words[3];
    let to = config.remote4.words[3];
    let mut sum = 0;
    for word in [first, second, third, u32::from_be(from), u32::from_be(to)] {
        sum += (word >> 16) + (word & 0xffff);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let third = third | (!sum & 0xffff);
    [first.to_be(), second.to_be(), third.to_be(), from, to]
}

#[inline(always)]
fn outer_v6(config: &Config, inner: u32, traffic_class: u8, number: u32) -> [u32; 10] {
    let first = 0x6000_0000 | u32::from(traffic_class) << 20 | (number & 0x000f_ffff);
    let next = u32::from(carried(config, protocol::IPV6));
    let second = length_field(inner) << 16 | next << 8 | u32::from(TTL);
    let (from, to) = (&config.local6.words, &config.remote6.words);
    [
        first.to_be(),
        second.to_be(),
        from[0],
        from[1],
        from[2],
        from[3],
        to[0],
        to[1],
        to[2],
        to[3],
    ]
}
