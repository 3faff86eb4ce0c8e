//! Dropped inside of a tunnel's outer header.

use crate::require;
use crate::stage::{Stage, VM};
use crate::tracer::{Expected, Tracer, kind};

/// From the client to the node, with the VM's packets in it.
fn vxlan(stage: &Stage) {
    stage.node.ip(
        "link add vx0 address 02:00:00:00:00:aa type vxlan id 5 dstport 4789 local 10.80.0.1
         link set vx0 up",
    );
    stage.client.ip(&format!(
        "link add vx0 type vxlan id 5 dstport 4789 local 10.80.0.2 remote 10.80.0.1 dev eth0
         addr add 10.70.0.2/24 dev vx0
         link set vx0 up
         neigh add 10.70.0.1 lladdr 02:00:00:00:00:aa dev vx0
         route add {VM}/32 via 10.70.0.1 dev vx0 src 10.80.0.2"
    ));
}

#[test]
fn a_firewall_between_the_tunnels_ends() {
    require!();
    let stage = Stage::new();
    vxlan(&stage);
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["NETFILTER_DROP"],
        hop: "netfilter",
        symbols: &["nf_", "nft_"],
        device: "up0",
        space: &stage.node,
    };
    let cause = || {
        stage.node.nft(
            "table inet t { chain i { type filter hook input priority 0; udp dport 4789 drop; }; }",
        );
    };
    let record = kind(&stage, &tracer, &expected, 3, cause, || stage.send(VM, 3));
    assert_eq!(record["tunnel"], "vxlan", "{record:#?}");
    assert_eq!(record["destination"], VM);
    assert_eq!(record["length"], 100, "the VM's packet, not the outer one");
}

#[test]
fn nobody_knows_the_tunnels_network() {
    require!();
    let stage = Stage::new();
    vxlan(&stage);
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        // Before Linux 6.12 the kernel says only where.
        reasons: &["VXLAN_VNI_NOT_FOUND", "NOT_SPECIFIED"],
        hop: "tunnel",
        symbols: &["vxlan_rcv"],
        device: "up0",
        space: &stage.node,
    };
    let cause = || {
        stage.node.ip("link del vx0
             link add vx0 type vxlan id 6 dstport 4789 local 10.80.0.1
             link set vx0 up");
    };
    let record = kind(&stage, &tracer, &expected, 3, cause, || stage.send(VM, 3));
    assert_eq!(record["tunnel"], "vxlan", "{record:#?}");
}
