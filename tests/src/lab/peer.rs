//! A data path that goes past the node's end of a pod's veth, as Cilium's does.
//!
//! A program at the ingress of the node's underlay hands what comes for V straight to V's pod (`bpf_redirect_peer`), with
//! V's Ethernet address on it. Neither routes nor queues nor hooks of the node's end see it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use anyhow::Result;

use super::netns::Netns;
use super::topology::{GUEST_V4, GUEST_V6, UNDERLAY};
use super::wiring::POD_VETH;
use crate::bpf::{self, Way, one};

/// [`super::GUEST_MAC`] as it stands in a frame.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

/// Puts the program on a node. It is there as long as what is returned.
pub(super) fn attach(node: &Netns) -> Result<OwnedFd> {
    let veth = node.run(|| bpf::index(POD_VETH))??;
    bpf::attach(
        node,
        UNDERLAY,
        Way::In,
        &instructions(veth, GUEST_V4, GUEST_V6),
    )
}

/// Four bytes as an instruction's constant, as they are in memory.
fn word(bytes: [u8; 4]) -> i32 {
    i32::from_le_bytes(bytes)
}

fn instructions(veth: i32, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<u64> {
    const NEXT: i32 = -1;
    // As they stand in the packet.
    const IPV4: i32 = 0x0008;
    const IPV6: i32 = 0xdd86;
    let v6 = v6.octets();
    let part = |at: usize| word([v6[at], v6[at + 1], v6[at + 2], v6[at + 3]]);
    let [a, b, c, d, e, f] = MAC;
    vec![
        one(0xbf, 6, 1, 0, 0),                 // r6 = skb
        one(0xb7, 2, 0, 0, 54),                // r2 = Ethernet and IPv6 header
        one(0x85, 0, 0, 0, 39),                // bpf_skb_pull_data(skb, r2)
        one(0x61, 2, 6, 76, 0),                // r2 = skb->data
        one(0x61, 3, 6, 80, 0),                // r3 = skb->data_end
        one(0xbf, 4, 2, 0, 0),                 // r4 = r2
        one(0x07, 4, 0, 0, 54),                // r4 += 54
        one(0x2d, 4, 3, 22, 0),                // if r4 > r3 goto next
        one(0x69, 5, 2, 12, 0),                // r5 = EtherType
        one(0x15, 5, 0, 4, IPV6),              // if r5 == IPv6 goto v6
        one(0x55, 5, 0, 19, IPV4),             // if r5 != IPv4 goto next
        one(0x61, 5, 2, 30, 0),                // r5 = destination
        one(0x16, 5, 0, 9, word(v4.octets())), // if r5 == V goto send
        one(0x05, 0, 0, 16, 0),                // goto next
        // v6:
        one(0x61, 5, 2, 38, 0),       // r5 = destination, first word
        one(0x56, 5, 0, 14, part(0)), // if r5 != V goto next
        one(0x61, 5, 2, 42, 0),
        one(0x56, 5, 0, 12, part(4)),
        one(0x61, 5, 2, 46, 0),
        one(0x56, 5, 0, 10, part(8)),
        one(0x61, 5, 2, 50, 0),
        one(0x56, 5, 0, 8, part(12)),
        // send:
        one(0x62, 2, 0, 0, word([a, b, c, d])), // Ethernet destination = V
        one(0x6a, 2, 0, 4, word([e, f, 0, 0])),
        one(0x62, 2, 0, 6, word([0xee; 4])), // source = V's gateway
        one(0x6a, 2, 0, 10, word([0xee, 0xee, 0, 0])),
        one(0xb7, 1, 0, 0, veth), // r1 = the node's end
        one(0xb7, 2, 0, 0, 0),    // r2 = 0
        one(0x85, 0, 0, 0, 155),  // r0 = bpf_redirect_peer(r1, r2)
        one(0x95, 0, 0, 0, 0),    // return
        // next:
        one(0xb7, 0, 0, 0, NEXT),
        one(0x95, 0, 0, 0, 0),
    ]
}
