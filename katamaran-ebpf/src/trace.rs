//! `ktm_xmit` and `ktm_drop`: the kernel as witness.

use katamaran_common::counter::Counter;
use katamaran_common::layout::{Config, DropKey, KernelOffsets, encap};
use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, L4, parse_ip, parse_l4, protocol,
};
use katamaran_common::segments::{count_of, wire_segments};
use katamaran_common::trace::Tunnel;

use crate::encapsulate::{carried, gre_length};
use crate::kernel::{KernelBytes, KernelSkb, device, load};
use crate::maps;

/// A driver was handed `skb`. If it is the tap's, it counts: V's packets apart from all others.
#[inline(always)]
pub(crate) fn transmitted(skb: u64, dev: u64) -> Option<()> {
    let config = maps::config()?;
    let offsets = &config.offsets;
    // By one reading: this runs for each packet that any device of the machine sends.
    if load::<u32>(dev, offsets.dev_ifindex)? != config.tap_ifindex
        || device(offsets, dev)?.netns_inum != config.tap_netns_inum
    {
        return None;
    }
    let skb = KernelSkb::new(offsets, skb)?;
    match skb.ip(offsets) {
        Some((ip, bytes)) if maps::is_address(&ip.destination) => {
            let l4 = parse_l4(&bytes, &ip);
            let segments = segments(&skb, offsets, &l4);
            let count = count_of(segments, ip.length, ip.headers(&l4));
            maps::count(Counter::Offered, &count);
        }
        _ => {
            let length = skb.length(offsets).unwrap_or(0);
            let count = count_of(1, length.saturating_sub(ETHERNET_LENGTH), 0);
            maps::count(Counter::OfferedOther, &count);
        }
    }
    Some(())
}

/// How many packets on the wire an skb is.
#[inline(always)]
pub(crate) fn segments(skb: &KernelSkb, offsets: &KernelOffsets, l4: &L4) -> u32 {
    let (gso_size, gso_segments) = skb.gso(offsets).unwrap_or((0, 0));
    wire_segments(gso_segments, gso_size, l4.payload)
}

/// The kernel drops `skb`. If it is V's (or carries V's) and in our namespaces, it counts.
#[inline(always)]
pub(crate) fn dropped(skb: u64, location: u64, reason: u32) -> Option<()> {
    let config = maps::config()?;
    let offsets = &config.offsets;
    let skb = KernelSkb::new(offsets, skb)?;
    let device = device(offsets, skb.device_address(offsets)?)?;
    if device.netns_inum != config.netns_inum && device.netns_inum != config.tap_netns_inum {
        return None;
    }
    let (ip, bytes) = skb.ip(offsets)?;
    let in_tunnel = !maps::is_address(&ip.destination);
    let inner = if in_tunnel {
        tunnelled(config, &ip, &bytes).filter(|inner| maps::is_address(&inner.destination))?
    } else {
        ip
    };
    let l4 = parse_l4(&bytes, &inner);
    let tunnel = match (in_tunnel, config.encap) {
        (false, _) => Tunnel::None,
        (true, encap::GRE) => Tunnel::Gre,
        (true, _) => Tunnel::Ip,
    };
    let key = DropKey {
        location,
        reason,
        ifindex: device.ifindex,
        netns_inum: device.netns_inum,
        way: tunnel as u32,
    };
    maps::count_drop(&key, u64::from(segments(&skb, offsets, &l4)));
    Some(())
}

/// The packet inside, if the outer header is one of our tunnel's, in either direction.
#[inline(always)]
fn tunnelled(config: &Config, outer: &Ip, bytes: &KernelBytes) -> Option<Ip> {
    let (ends, number, ethertype) = if outer.v4 {
        (
            (config.local4, config.remote4),
            protocol::IPIP,
            ETHERTYPE_IPV4,
        )
    } else {
        (
            (config.local6, config.remote6),
            protocol::IPV6,
            ETHERTYPE_IPV6,
        )
    };
    let ours = outer.destination == ends.0 || outer.destination == ends.1;
    if !ours || outer.protocol != carried(config, number) || outer.fragment != 0 {
        return None;
    }
    let at = outer.l4_offset + gre_length(config);
    parse_ip(bytes, ethertype, at, outer.length.saturating_sub(at))
}
