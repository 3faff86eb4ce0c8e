//! The kernel's drop reasons, as far as there is something to say about them.
//!
//! The names come from the running kernel, and a reason that is not here is told by its name.

use super::hop::Hop;

/// What is known of a reason.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// The kernel's name, without its prefix.
    name: &'static str,
    pub(super) hop: Hop,
    /// For whoever has to do something about it.
    pub(super) meaning: &'static str,
}

pub(super) fn known(reason: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == reason)
}

const fn row(name: &'static str, hop: Hop, meaning: &'static str) -> Known {
    Known { name, hop, meaning }
}

/// Reasons that are given in several places have [`Hop::Device`] or [`Hop::Kernel`]: the function tells.
#[rustfmt::skip]
const KNOWN: &[Known] = &[
    row("FULL_RING", Hop::Device, "a ring is full: for a tap, QEMU reads too slowly or not at all; a longer txqueuelen holds more"),
    row("DEV_READY", Hop::Device, "the device is down, or going down"),
    row("DEV_HDR", Hop::Device, "the device's header could not be made"),
    row("NOMEM", Hop::Device, "no memory"),
    row("HDR_TRUNC", Hop::Device, "the packet is shorter than its headers"),
    row("PKT_TOO_SMALL", Hop::Device, "the packet is shorter than its headers"),
    row("CPU_BACKLOG", Hop::Device, "the CPU's queue of received packets is full (net.core.netdev_max_backlog)"),
    row("UNHANDLED_PROTO", Hop::Device, "nobody here understands this ethertype"),
    row("QUEUE_PURGE", Hop::Device, "a queue was thrown away with what it held"),
    row("RECURSION_LIMIT", Hop::Device, "devices send to each other in a circle"),
    row("OTHERHOST", Hop::Device, "the frame was sent to another MAC: a flooded copy, or a wrong neighbour entry"),
    row("MAC_INVALID_SOURCE", Hop::Device, "the sender's MAC is not one of a host"),
    row("LOCAL_MAC", Hop::Device, "the sender's MAC is our own: a loop, or the same MAC twice"),
    row("UNICAST_IN_L2_MULTICAST", Hop::Device, "an address of one host in a frame to many: flooded by a link that does not know the MAC"),
    row("NOT_SPECIFIED", Hop::Kernel, "the kernel gives no reason; the function is all there is"),
    row("XDP", Hop::Xdp, "an XDP program dropped it"),
    row("TC_INGRESS", Hop::Tc, "a filter or program at tc ingress dropped it"),
    row("TC_EGRESS", Hop::Tc, "a filter or program at tc egress dropped it"),
    row("TC_COOKIE_ERROR", Hop::Tc, "a tc action lost its place"),
    row("TC_CHAIN_NOTFOUND", Hop::Tc, "a tc filter jumps to a chain that is not there"),
    row("TC_RECLASSIFY_LOOP", Hop::Tc, "tc filters go round in a circle"),
    row("BRIDGE_INGRESS_STP_STATE", Hop::Bridge, "the bridge's port does not forward (yet): spanning tree"),
    row("NO_TX_TARGET", Hop::Bridge, "no port to send it to"),
    row("NETFILTER_DROP", Hop::Netfilter, "a firewall rule, or connection tracking, dropped it"),
    row("IP_CSUM", Hop::Ip, "the IPv4 header's checksum is wrong"),
    row("IP_INHDR", Hop::Ip, "the IP header is bad, or its lifetime (TTL, hop limit) is over"),
    row("PKT_TOO_BIG", Hop::Ip, "larger than the MTU of the way out, and must not be cut"),
    row("DUP_FRAG", Hop::Ip, "a fragment that is there already"),
    row("FRAG_REASM_TIMEOUT", Hop::Ip, "the other fragments did not come in time"),
    row("FRAG_TOO_FAR", Hop::Ip, "too many other fragments came in between"),
    row("IP_NOPROTO", Hop::Ip, "nobody here takes this protocol"),
    row("IPV6DISABLED", Hop::Ip, "IPv6 is switched off on the device"),
    row("IPV6_BAD_EXTHDR", Hop::Ip, "a bad extension header"),
    row("IP_OUTNOROUTES", Hop::Routing, "no route to the destination (sent from here)"),
    row("IP_INNOROUTES", Hop::Routing, "no route to the destination (forwarded)"),
    row("IP_INADDRERRORS", Hop::Routing, "the addresses lead nowhere: a forbidden route, or forwarding is off"),
    row("IP_RPFILTER", Hop::Routing, "the way back to the sender is another device (rp_filter)"),
    row("IP_LOCAL_SOURCE", Hop::Routing, "the sender's address is one of this node"),
    row("IP_INVALID_SOURCE", Hop::Routing, "the sender's address is none of a host"),
    row("IP_INVALID_DEST", Hop::Routing, "the destination is none of a host"),
    row("IP_LOCALNET", Hop::Routing, "a loopback address on the network"),
    row("BLACKHOLE", Hop::Routing, "a blackhole route"),
    row("XFRM_POLICY", Hop::Xfrm, "an IPsec policy forbids it"),
    row("NEIGH_CREATEFAIL", Hop::Neighbour, "the table of neighbours is full"),
    row("NEIGH_FAILED", Hop::Neighbour, "the next hop does not answer ARP or neighbour discovery"),
    row("NEIGH_QUEUEFULL", Hop::Neighbour, "too many packets wait for the next hop to answer"),
    row("NEIGH_DEAD", Hop::Neighbour, "the neighbour's entry was removed"),
    row("NEIGH_HH_FILLFAIL", Hop::Neighbour, "the link header could not be made"),
    row("QDISC_DROP", Hop::Qdisc, "the queueing discipline dropped it: full, or its device does not run"),
    row("QDISC_OVERLIMIT", Hop::Qdisc, "the queueing discipline is full"),
    row("QDISC_CONGESTED", Hop::Qdisc, "the queueing discipline drops early"),
    row("TAP_FILTER", Hop::Tap, "a filter on the tap dropped it"),
    row("TAP_TXFILTER", Hop::Tap, "the tap takes other MACs only"),
    row("VXLAN_INVALID_HDR", Hop::Tunnel, "a bad VXLAN header"),
    row("VXLAN_VNI_NOT_FOUND", Hop::Tunnel, "no device for this VXLAN network"),
    row("VXLAN_ENTRY_EXISTS", Hop::Tunnel, "the sender's MAC is fixed at another place"),
    row("TUNNEL_TXINFO", Hop::Tunnel, "the tunnel does not know where to send it"),
    row("IP_TUNNEL_ECN", Hop::Tunnel, "outer and inner ECN contradict each other"),
    row("NO_SOCKET", Hop::Socket, "nobody listens at this port"),
    row("SOCKET_CLOSE", Hop::Socket, "the socket was closed"),
    row("SOCKET_FILTER", Hop::Socket, "the socket's own filter dropped it"),
    row("SOCKET_RCVBUFF", Hop::Socket, "the socket's receive buffer is full: its program reads too slowly"),
    row("SOCKET_BACKLOG", Hop::Socket, "the socket's backlog is full: its program reads too slowly"),
    row("PROTO_MEM", Hop::Socket, "the protocol's memory limit is reached"),
    row("TCP_CSUM", Hop::Socket, "TCP's checksum is wrong"),
    row("UDP_CSUM", Hop::Socket, "UDP's checksum is wrong"),
    row("ICMP_CSUM", Hop::Socket, "ICMP's checksum is wrong"),
    row("TCP_OLD_DATA", Hop::Socket, "sent again, though it had arrived"),
    row("TCP_OFOMERGE", Hop::Socket, "sent again, though it had arrived"),
    row("TCP_OVERWINDOW", Hop::Socket, "outside of TCP's window"),
    row("TCP_ZEROWINDOW", Hop::Socket, "TCP's window is closed: the program reads too slowly"),
    row("TCP_RESET", Hop::Socket, "the connection was reset"),
    row("TCP_CLOSE", Hop::Socket, "the connection is closed"),
    row("TCP_LISTEN_OVERFLOW", Hop::Socket, "too many connections wait to be accepted"),
    row("TCP_FLAGS", Hop::Socket, "TCP's flags make no sense here"),
    row("PACKET_SOCK_ERROR", Hop::Socket, "a packet socket (tcpdump?) could not keep up: a copy, not the packet"),
    row("BPF_CGROUP_EGRESS", Hop::Socket, "a cgroup's program dropped it"),
    row("SECURITY_HOOK", Hop::Socket, "a security module forbids it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_explained_once() {
        for (index, one) in KNOWN.iter().enumerate() {
            assert!(!one.meaning.is_empty());
            assert!(
                KNOWN[..index].iter().all(|other| other.name != one.name),
                "{}",
                one.name
            );
        }
    }
}
