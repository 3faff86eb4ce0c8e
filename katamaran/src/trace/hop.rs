//! Which part of the kernel dropped a packet, and what its reason means.

use std::fmt;

use serde::Serialize;

/// A step on a packet's way through a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// A device's driver, or the kernel's entry for received packets.
    Device,
    /// A program at a device's driver or its generic replacement.
    Xdp,
    /// A filter or program at `clsact`, TCX or a qdisc.
    Tc,
    /// A bridge.
    Bridge,
    /// The IP layer: header, lifetime, size, fragments.
    Ip,
    /// A firewall rule, or connection tracking.
    Netfilter,
    /// The routing table.
    Routing,
    /// IPsec policies.
    Xfrm,
    /// ARP and neighbour discovery.
    Neighbour,
    /// The queueing discipline of a device.
    Qdisc,
    /// A tap or tun device: its ring, its reader, its writer.
    Tap,
    /// A tunnel's device.
    Tunnel,
    /// A socket of this node or namespace, and its protocol.
    Socket,
    /// Somewhere else.
    Kernel,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Device => "device",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Bridge => "bridge",
            Self::Ip => "ip",
            Self::Netfilter => "netfilter",
            Self::Routing => "routing",
            Self::Xfrm => "xfrm",
            Self::Neighbour => "neighbour",
            Self::Qdisc => "qdisc",
            Self::Tap => "tap",
            Self::Tunnel => "tunnel",
            Self::Socket => "socket",
            Self::Kernel => "kernel",
        })
    }
}

/// Where a packet was dropped for `reason` in the function `symbol`.
///
/// Where the function tells more than the reason does (`FULL_RING`: whose ring?) or the kernel gives no
/// reason, the function decides.
pub(super) fn of(reason: &str, symbol: Option<&str>) -> Hop {
    let by_symbol = symbol.and_then(of_symbol);
    match super::reasons::known(reason) {
        Some(known) if !matches!(known.hop, Hop::Device | Hop::Kernel) => known.hop,
        Some(known) => by_symbol.unwrap_or(known.hop),
        None => by_symbol.unwrap_or_else(|| of_family(reason)),
    }
}

/// Reasons of a family that newer kernels may have more of.
fn of_family(reason: &str) -> Hop {
    let families = [
        ("TCP_", Hop::Socket),
        ("SOCKET_", Hop::Socket),
        ("VXLAN_", Hop::Tunnel),
        ("TUNNEL_", Hop::Tunnel),
        ("NEIGH_", Hop::Neighbour),
        ("QDISC_", Hop::Qdisc),
        ("FQ_", Hop::Qdisc),
        ("CAKE_", Hop::Qdisc),
        ("BRIDGE_", Hop::Bridge),
        ("TC_", Hop::Tc),
        ("TAP_", Hop::Tap),
        ("IP_", Hop::Ip),
        ("IPV6_", Hop::Ip),
        ("OPENVSWITCH_", Hop::Bridge),
    ];
    families
        .into_iter()
        .find_map(|(prefix, hop)| reason.starts_with(prefix).then_some(hop))
        .unwrap_or(Hop::Kernel)
}

/// By the names of the kernel's functions, the more special before the more general.
fn of_symbol(symbol: &str) -> Option<Hop> {
    let symbol = symbol.trim_start_matches('_');
    let prefixes = [
        // What a qdisc held when it was removed or reset is freed when the lock is given back.
        ("rtnl_unlock", Hop::Qdisc),
        ("rtnl_kfree_skbs", Hop::Qdisc),
        ("qdisc_", Hop::Qdisc),
        ("dev_queue_xmit", Hop::Qdisc),
        ("dev_xmit_skb", Hop::Qdisc),
        ("sch_direct_xmit", Hop::Qdisc),
        ("tbf_", Hop::Qdisc),
        ("htb_", Hop::Qdisc),
        ("plug_", Hop::Qdisc),
        ("netem_", Hop::Qdisc),
        ("do_xdp_generic", Hop::Xdp),
        ("netif_receive_generic_xdp", Hop::Xdp),
        ("bpf_prog_run_generic_xdp", Hop::Xdp),
        ("tun_", Hop::Tap),
        ("tap_", Hop::Tap),
        ("tcf_", Hop::Tc),
        ("sch_handle_", Hop::Tc),
        ("skb_do_redirect", Hop::Tc),
        ("bpf_", Hop::Tc),
        ("nf_", Hop::Netfilter),
        ("nft_", Hop::Netfilter),
        ("neigh_", Hop::Neighbour),
        ("arp_", Hop::Neighbour),
        ("ndisc_", Hop::Neighbour),
        ("br_", Hop::Bridge),
        ("vxlan_", Hop::Tunnel),
        ("ip_tunnel_", Hop::Tunnel),
        ("iptunnel_", Hop::Tunnel),
        ("ipip_", Hop::Tunnel),
        ("ip6_tnl", Hop::Tunnel),
        ("gre_", Hop::Tunnel),
        ("ip_route_", Hop::Routing),
        ("ip_error", Hop::Routing),
        ("ip6_pkt_", Hop::Routing),
        ("dst_discard", Hop::Routing),
        ("ip_", Hop::Ip),
        ("ip6_", Hop::Ip),
        ("ipv6_", Hop::Ip),
        ("inet_frag", Hop::Ip),
        ("xfrm_", Hop::Xfrm),
        ("tcp_", Hop::Socket),
        ("udp_", Hop::Socket),
        ("udp4_", Hop::Socket),
        ("udp6_", Hop::Socket),
        ("udpv6_", Hop::Socket),
        ("icmp_", Hop::Socket),
        ("icmpv6_", Hop::Socket),
        ("raw_", Hop::Socket),
        ("rawv6_", Hop::Socket),
        ("sk_", Hop::Socket),
        ("sock_", Hop::Socket),
        ("inet_", Hop::Socket),
        ("packet_", Hop::Socket),
        ("veth_", Hop::Device),
        ("netif_", Hop::Device),
        ("dev_", Hop::Device),
        ("enqueue_to_backlog", Hop::Device),
        ("process_backlog", Hop::Device),
    ];
    prefixes
        .into_iter()
        .find_map(|(prefix, hop)| symbol.starts_with(prefix).then_some(hop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_tells_the_hop_and_where_it_does_not_the_function_does() {
        for (reason, symbol, hop) in [
            ("NETFILTER_DROP", Some("nf_hook_slow+0x1"), Hop::Netfilter),
            ("NETFILTER_DROP", None, Hop::Netfilter),
            ("FULL_RING", Some("tun_net_xmit+0x1"), Hop::Tap),
            ("FULL_RING", Some("veth_xmit+0x1"), Hop::Device),
            ("NOT_SPECIFIED", Some("__rtnl_unlock+0x1"), Hop::Qdisc),
            ("NOT_SPECIFIED", Some("something_else+0x1"), Hop::Kernel),
            ("NOT_SPECIFIED", None, Hop::Kernel),
            ("TCP_OF_A_LATER_KERNEL", None, Hop::Socket),
            ("UNHEARD_OF", None, Hop::Kernel),
        ] {
            assert_eq!(of(reason, symbol), hop, "{reason} {symbol:?}");
        }
    }
}
