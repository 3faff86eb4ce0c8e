//! `ktm_source`: the switch.

use katamaran_common::counter::{Counter, Digest, Stamp};
use katamaran_common::digest::contribution;
use katamaran_common::layout::{Config, Count, Mode, encap};
use katamaran_common::packet::{ETHERNET_LENGTH, ETHERTYPE_ARP, Ip, L4, parse_ip, parse_l4};
use katamaran_common::segments::{count_of, wire_segments};

use crate::context::Skb;
use crate::encapsulate::{Fit, encapsulate, fit};
use crate::programs::{DROP, PASS};
use crate::{copy, maps, neighbour, retain};

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
    if config.through_pod != 0 {
        return skb.redirect(config.hook_ifindex);
    }
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
    let (fit, segments) = plan(skb, config, ip, l4, gso_size);
    let count = count_of(segments, ip.length, ip.headers(l4));
    maps::count(Counter::Arrived, &count);

    // The packet is read before it is changed.
    let contribution = contribution(skb, ip, l4, gso_size);
    if matches!(fit, Fit::TooBig) {
        maps::count(Counter::TooBig, &count);
        return pass_counted(skb, &count);
    }
    // Before it has a number: what takes time between that and the sending lets another CPU's packets overtake it. One that then can't be
    // sent is passed on, and counted; it would be returned to V a second time.
    let retained = !maps::retaining() || retain::keep(skb, ip.length, gso_size).is_some();
    let action = if config.through_pod != 0 {
        skb.redirect(config.through_pod)
    } else {
        let Some(action) = send(skb, config, ip, fit, segments, gso_size != 0) else {
            maps::count(Counter::EncapFailed, &count);
            return pass_counted(skb, &count);
        };
        action
    };
    maps::count(Counter::Redirected, &count);
    if !retained {
        maps::count(Counter::NotRetained, &count);
    }
    maps::digest(Digest::Redirected, contribution);
    maps::stamp_first(Stamp::FirstRedirected);
    maps::stamp(Stamp::LastRedirected);
    action
}

/// How a packet gets to D, and how many it is on the wire then.
#[inline(always)]
fn plan(skb: &Skb, config: &Config, ip: &Ip, l4: &L4, gso_size: u32) -> (Fit, u32) {
    let fit = if config.encap != encap::DEVICE {
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
    (fit, segments)
}

/// Sends a packet to D. On `None` it is as it was.
#[inline(always)]
fn send(
    skb: &Skb,
    config: &Config,
    ip: &Ip,
    fit: Fit,
    segments: u32,
    is_super: bool,
) -> Option<i32> {
    match fit {
        Fit::TooBig => None,
        Fit::Device { ifindex } => {
            skb.forget_route();
            Some(skb.redirect(ifindex))
        }
        Fit::AsIs | Fit::Smaller { .. } => {
            let keep_size = !matches!(fit, Fit::Smaller { .. });
            encapsulate(skb, config, ip, segments, is_super, keep_size)?;
            Some(skb.redirect_neighbour(config.out_ifindex))
        }
    }
}

/// `ktm_lift`: what comes out of V's pod for V itself was sent back by `ktm_source`, which has counted it. The node
/// would route it into the pod again, so what can't be sent is dropped.
#[inline(always)]
pub(crate) fn lift(skb: &Skb) -> Option<i32> {
    let config = maps::config()?;
    let room = skb.length().saturating_sub(ETHERNET_LENGTH);
    let ip = parse_ip(skb, skb.ethertype(), ETHERNET_LENGTH, room)?;
    if skb.has_vlan() || !maps::is_address(&ip.destination) {
        return None;
    }
    let l4 = parse_l4(skb, &ip);
    let gso_size = skb.gso_size();
    let (fit, segments) = plan(skb, config, &ip, &l4, gso_size);
    Some(send(skb, config, &ip, fit, segments, gso_size != 0).unwrap_or(DROP))
}
