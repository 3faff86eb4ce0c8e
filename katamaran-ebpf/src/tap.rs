//! `ktm_tap`: what reaches V's device on D, and by which way.

use katamaran_common::counter::{Counter, Digest};
use katamaran_common::digest::contribution;
use katamaran_common::packet::{ETHERNET_LENGTH, parse_ip, parse_l4};
use katamaran_common::segments::{count_of, wire_segments};

use crate::context::Skb;
use crate::maps;

#[inline(always)]
pub(crate) fn run(skb: &Skb) {
    let Some(config) = maps::config() else { return };
    let tunnelled = skb.mark() == config.mark;
    if tunnelled {
        skb.set_mark(0);
    }
    let room = skb.length().saturating_sub(ETHERNET_LENGTH);
    let parsed = parse_ip(skb, skb.ethertype(), ETHERNET_LENGTH, room);
    let Some(ip) = parsed.filter(|ip| maps::is_address(&ip.destination)) else {
        maps::count(Counter::TapOther, &count_of(1, room, 0));
        return;
    };
    let l4 = parse_l4(skb, &ip);
    let gso_size = skb.gso_size();
    let segments = wire_segments(skb.gso_segments(), gso_size, l4.payload);
    let counter = if tunnelled {
        Counter::TapTunnelled
    } else {
        Counter::TapDirect
    };
    maps::count(counter, &count_of(segments, ip.length, ip.headers(&l4)));
    maps::digest(Digest::Tap, contribution(skb, &ip, &l4, gso_size));
}
