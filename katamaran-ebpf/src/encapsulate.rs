//! The outer header: IPIP for v4, IP6IP6 for v6, written by the program itself.
//!
//! `bpf_skb_adjust_room` with the ENCAP flags keeps super-packets whole: it marks the skb as
//! encapsulated and adds `SKB_GSO_IPXIP4`/`6`, so that segmentation repeats both headers. With
//! `FIXED_GSO` the segment size stays; without it the kernel takes the outer header's length off it,
//! which is right for TCP (segments have no meaning) and refused for UDP (they are datagrams).

use katamaran_common::layout::Config;
use katamaran_common::packet::{ETHERNET_LENGTH, IPV4_LENGTH, IPV6_LENGTH, Ip, L4, protocol};

use crate::context::Skb;
use crate::maps;

/// `BPF_F_ADJ_ROOM_FIXED_GSO`
pub(crate) const FIXED_GSO: u64 = 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4`
const ENCAP_L3_IPV4: u64 = 1 << 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV6`
const ENCAP_L3_IPV6: u64 = 1 << 2;

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
fn overhead(ip: &Ip) -> u32 {
    if ip.v4 { IPV4_LENGTH } else { IPV6_LENGTH }
}

#[inline(always)]
pub(crate) fn fit(config: &Config, ip: &Ip, l4: &L4, gso_size: u32) -> Fit {
    let overhead = overhead(ip);
    let largest = config.path_mtu.saturating_sub(overhead);
    let headers = ip.headers(l4);
    let length = if gso_size == 0 { ip.length } else { headers + gso_size };
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
        return Fit::Device { ifindex: config.oversize_ifindex };
    }
    Fit::TooBig
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
    let flags = if keep_size { FIXED_GSO } else { 0 };
    let traffic_class = traffic_class(skb, ip)?;
    // A super-packet's own length field may be 0, a short frame may be padded.
    let inner = if is_super { skb.length() - ETHERNET_LENGTH } else { ip.length };
    if ip.v4 {
        if config.families & 1 == 0 {
            return None;
        }
        skb.adjust_room(IPV4_LENGTH as i32, flags | ENCAP_L3_IPV4)?;
        let number = maps::take_numbers(0, segments);
        let header = outer_v4(config, inner, traffic_class, number as u16);
        write(skb, config, &header, -(IPV4_LENGTH as i32))
    } else {
        if config.families & 2 == 0 {
            return None;
        }
        skb.adjust_room(IPV6_LENGTH as i32, flags | ENCAP_L3_IPV6)?;
        let number = maps::take_numbers(1, segments);
        let header = outer_v6(config, inner, traffic_class, number as u32);
        write(skb, config, &header, -(IPV6_LENGTH as i32))
    }
}

#[inline(always)]
fn write<const N: usize>(skb: &Skb, config: &Config, header: &[u8; N], undo: i32) -> Option<()> {
    // bpf_redirect_neigh drops frames whose Ethernet destination is a group address.
    let written = skb.store(ETHERNET_LENGTH, header).and_then(|()| skb.store(0, &config.vm_mac));
    if written.is_none() {
        // Nothing more can be done if this fails too: the packet is passed on either way.
        let _ = skb.adjust_room(undo, FIXED_GSO);
        return None;
    }
    // Marks belong to the inner packet's policy; the outer one must not be routed by them.
    skb.set_mark(0);
    Some(())
}

/// DSCP and ECN, which the outer header repeats.
#[inline(always)]
fn traffic_class(skb: &Skb, ip: &Ip) -> Option<u8> {
    use katamaran_common::packet::PacketRead as _;
    let [first, second] = skb.read::<2>(ip.offset)?;
    Some(if ip.v4 { second } else { (first << 4) | (second >> 4) })
}

/// A length field: 0 means "as long as the buffer", as for the kernel's own large super-packets.
#[inline(always)]
fn length_field(length: u32) -> [u8; 2] {
    let length = if length > 0xffff { 0 } else { length };
    (length as u16).to_be_bytes()
}

#[inline(always)]
fn outer_v4(config: &Config, inner: u32, traffic_class: u8, number: u16) -> [u8; 20] {
    let mut header = [0u8; 20];
    let length = length_field(inner + IPV4_LENGTH);
    let number = number.to_be_bytes();
    header[0] = 0x45;
    header[1] = traffic_class;
    header[2] = length[0];
    header[3] = length[1];
    header[4] = number[0];
    header[5] = number[1];
    header[6] = 0x40; // don't fragment: D's hook sees no reassembled packets
    header[8] = TTL;
    header[9] = protocol::IPIP;
    header[12..16].copy_from_slice(&config.local4);
    header[16..20].copy_from_slice(&config.remote4);
    let mut sum = 0u32;
    let mut at = 0;
    while at < 20 {
        sum += u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
        at += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = (!(sum as u16)).to_be_bytes();
    header[10] = checksum[0];
    header[11] = checksum[1];
    header
}

#[inline(always)]
fn outer_v6(config: &Config, inner: u32, traffic_class: u8, number: u32) -> [u8; 40] {
    let mut header = [0u8; 40];
    let length = length_field(inner);
    header[0] = 0x60 | (traffic_class >> 4);
    header[1] = (traffic_class << 4) | ((number >> 16) as u8 & 0x0f);
    header[2] = (number >> 8) as u8;
    header[3] = number as u8;
    header[4] = length[0];
    header[5] = length[1];
    header[6] = protocol::IPV6;
    header[7] = TTL;
    header[8..24].copy_from_slice(&config.local6);
    header[24..40].copy_from_slice(&config.remote6);
    header
}
