//! `ktm_deliver`: takes V's packets out of the tunnel and hands them to V's device.
//!
//! Source and destination family are the same, so `bpf_skb_adjust_room` needs no DECAP flags: they
//! only tell it that the family changes (6.3+), and without them this works on older kernels too.
//!
//! Super-packets: taking the outer header off leaves the skb marked as encapsulated
//! (`skb->encapsulation`, `SKB_GSO_IPXIP4`/`6`); no helper and no redirect of Linux 6.18 clears that. The
//! tap can't take such a super-packet, so the kernel cuts it in software on the way to the driver. The
//! bytes are right (tested with TCP and UDP of both families); what it means is that on D every packet,
//! not every super-packet, takes a slot of the tap's ring. The ring must be sized in packets.

use katamaran_common::counter::{Counter, Digest, Stamp};
use katamaran_common::digest::contribution;
use katamaran_common::layout::{Config, encap};
use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, PacketRead as _, parse_ip, parse_l4,
    protocol,
};
use katamaran_common::segments::{count_of, wire_segments};
use katamaran_common::sequence::{NUMBER_BITS_V4, NUMBER_BITS_V6};

use crate::context::Skb;
use crate::encapsulate::{FIXED_GSO, carried, gre_length};
use crate::maps;
use crate::programs::PASS;

#[inline(always)]
pub(crate) fn run(skb: &Skb) -> Option<i32> {
    let config = maps::config()?;
    let ethertype = skb.ethertype();
    let room = skb.length().saturating_sub(ETHERNET_LENGTH);
    let Some(outer) = parse_ip(skb, ethertype, ETHERNET_LENGTH, room) else {
        return Some(pass_other(skb));
    };
    // A tunnel device has already taken the frame out.
    if maps::is_address(&outer.destination) && skb.ifindex() == config.frames_ifindex {
        return Some(deliver(skb, config, &outer, 0));
    }
    if !skb.is_for_this_host() || !from_peer(config, &outer) {
        return Some(pass_other(skb));
    }
    let inner_ethertype = if outer.v4 {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    };
    if config.encap == encap::GRE && !is_plain_gre(skb, &outer, inner_ethertype) {
        return Some(pass_other(skb));
    }
    let at = outer.l4_offset + gre_length(config);
    let header = at - ETHERNET_LENGTH;
    let inner_room = room.saturating_sub(header);
    let Some(inner) = parse_ip(skb, inner_ethertype, at, inner_room) else {
        return Some(pass_other(skb));
    };
    if !maps::is_address(&inner.destination) {
        return Some(pass_other(skb));
    }
    Some(deliver(skb, config, &inner, header))
}

#[inline(always)]
fn pass_other(skb: &Skb) -> i32 {
    let length = skb.length().saturating_sub(ETHERNET_LENGTH);
    maps::count(Counter::DeliverOther, &count_of(1, length, 0));
    PASS
}

/// Whether this is our tunnel's outer header.
#[inline(always)]
fn from_peer(config: &Config, outer: &Ip) -> bool {
    if outer.fragment != 0 {
        return false;
    }
    let plain = if outer.v4 {
        protocol::IPIP
    } else {
        protocol::IPV6
    };
    if outer.protocol != carried(config, plain) {
        return false;
    }
    if outer.v4 {
        config.families & 1 != 0
            && outer.source == config.remote4
            && outer.destination == config.local4
    } else {
        config.families & 2 != 0
            && outer.source == config.remote6
            && outer.destination == config.local6
    }
}

/// Whether the GRE header is one that our program writes: no options, and a packet of the family in it.
#[inline(always)]
fn is_plain_gre(skb: &Skb, outer: &Ip, ethertype: u16) -> bool {
    skb.half(outer.l4_offset) == Some(0) && skb.half(outer.l4_offset + 2) == Some(ethertype)
}

/// Counts the packet, takes `header` bytes of outer header off and sends it to V's device.
#[inline(always)]
fn deliver(skb: &Skb, config: &Config, inner: &Ip, header: u32) -> i32 {
    let l4 = parse_l4(skb, inner);
    let gso_size = skb.gso_size();
    let segments = wire_segments(skb.gso_segments(), gso_size, l4.payload);
    let count = count_of(segments, inner.length, inner.headers(&l4));
    let contribution = contribution(skb, inner, &l4, gso_size);
    let number = if header == 0 {
        0
    } else {
        outer_number(skb, inner.v4).unwrap_or(0)
    };

    if header != 0 && skb.adjust_room(-(header as i32), FIXED_GSO).is_none() {
        maps::count(Counter::DecapFailed, &count);
        return PASS;
    }
    if skb.store(0, &config.deliver_header).is_none() {
        maps::count(Counter::DecapFailed, &count);
        return PASS;
    }
    maps::count(Counter::Tunnelled, &count);
    maps::digest(Digest::Tunnelled, contribution);
    maps::stamp(Stamp::LastTunnelled);
    if header != 0 {
        let (family, bits) = if inner.v4 {
            (0, NUMBER_BITS_V4)
        } else {
            (1, NUMBER_BITS_V6)
        };
        maps::note_numbers(family, number, segments, bits);
    }
    skb.set_mark(config.mark);
    if config.through_pod != 0 {
        return skb.redirect_peer(config.deliver_ifindex);
    }
    skb.redirect(config.deliver_ifindex)
}

#[inline(always)]
fn outer_number(skb: &Skb, v4: bool) -> Option<u32> {
    if v4 {
        Some(u32::from(skb.half(ETHERNET_LENGTH + 4)?))
    } else {
        let [word] = skb.words::<1>(ETHERNET_LENGTH)?;
        Some(u32::from_be(word) & 0x000f_ffff)
    }
}
