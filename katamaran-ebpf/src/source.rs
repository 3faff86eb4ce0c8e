//! `ktm_source`: the switch.

use katamaran_common::counter::{Counter, Digest, Stamp};
use katamaran_common::digest::contribution;
use katamaran_common::layout::{Config, Count, Mode, encap};
use katamaran_common::packet::{ETHERNET_LENGTH, ETHERTYPE_ARP, Ip, L4, parse_ip, parse_l4};
use katamaran_common::segments::{count_of, wire_segments};

use crate::context::Skb;
use crate::encapsulate::{Fit, encapsulate, fit};
use crate::programs::PASS;
use crate::{copy, maps, neighbour};

#[inline(always)]
pub(crate) fn run(skb: &Skb) -> Option<i32> {
    let mode = maps::mode();
    if mode == Mode::Off as u32 {
        return Some(PASS);
    }
    let config = maps::config()?;
    let redirecting = mode == Mode::Redirect as u32;
    let ethertype = skb.ethertype();
    if redirecting && ethertype == ETHERTYPE_ARP {
        return Some(answered(skb, config, neighbour::answer_arp(skb, config)));
    }
    let room = skb.length().saturating_sub(ETHERNET_LENGTH);
    let Some(ip) = parse_ip(skb, ethertype, ETHERNET_LENGTH, room) else {
        return Some(pass_other(skb));
    };
    if redirecting && neighbour::is_icmpv6(&ip) {
        let reply = neighbour::answer_solicitation(skb, config, &ip);
        if reply.is_some() {
            return Some(answered(skb, config, reply));
        }
    }
    if skb.has_vlan() || !maps::is_address(&ip.destination) {
        return Some(pass_other(skb));
    }
    let l4 = parse_l4(skb, &ip);
    Some(if redirecting {
        redirect(skb, config, &ip, &l4)
    } else {
        pass(skb, &ip, &l4)
    })
}

#[inline(always)]
fn answered(skb: &Skb, config: &Config, reply: Option<()>) -> i32 {
    if reply.is_none() {
        return pass_other(skb);
    }
    maps::count(
        Counter::NeighbourAnswered,
        &count_of(1, skb.length() - ETHERNET_LENGTH, 0),
    );
    skb.redirect_ingress(config.hook_ifindex)
}

#[inline(always)]
fn pass_other(skb: &Skb) -> i32 {
    let length = skb.length().saturating_sub(ETHERNET_LENGTH);
    maps::count(Counter::SourceOther, &count_of(1, length, 0));
    PASS
}

#[inline(always)]
fn pass(skb: &Skb, ip: &Ip, l4: &L4) -> i32 {
    let segments = wire_segments(skb.gso_segments(), skb.gso_size(), l4.payload);
    let count = count_of(segments, ip.length, ip.headers(l4));
    maps::count(Counter::Arrived, &count);
    pass_counted(skb, &count)
}

#[inline(always)]
fn pass_counted(skb: &Skb, count: &Count) -> i32 {
    maps::count(Counter::Passed, count);
    maps::stamp(Stamp::LastPassed);
    if maps::copying() {
        copy::keep(skb);
    }
    PASS
}

#[inline(always)]
fn redirect(skb: &Skb, config: &Config, ip: &Ip, l4: &L4) -> i32 {
    let gso_size = skb.gso_size();
    let fit = if config.encap == encap::IP {
        fit(config, ip, l4, gso_size)
    } else {
        Fit::Device {
            ifindex: config.out_ifindex,
        }
    };
    // Where the segments are made smaller to fit, this is how many there will be.
    let segments = match fit {
        Fit::Smaller { gso_size } => wire_segments(0, gso_size, l4.payload),
        _ => wire_segments(skb.gso_segments(), gso_size, l4.payload),
    };
    let count = count_of(segments, ip.length, ip.headers(l4));
    maps::count(Counter::Arrived, &count);

    // The packet is read before it is changed.
    let contribution = contribution(skb, ip, l4, gso_size);
    let action = match fit {
        Fit::TooBig => {
            maps::count(Counter::TooBig, &count);
            return pass_counted(skb, &count);
        }
        Fit::Device { ifindex } => {
            skb.forget_route();
            skb.redirect(ifindex)
        }
        Fit::AsIs | Fit::Smaller { .. } => {
            let keep_size = !matches!(fit, Fit::Smaller { .. });
            if encapsulate(skb, config, ip, segments, gso_size != 0, keep_size).is_none() {
                maps::count(Counter::EncapFailed, &count);
                return pass_counted(skb, &count);
            }
            skb.redirect_neighbour(config.out_ifindex)
        }
    };
    maps::count(Counter::Redirected, &count);
    maps::digest(Digest::Redirected, contribution);
    maps::stamp_first(Stamp::FirstRedirected);
    maps::stamp(Stamp::LastRedirected);
    action
}
