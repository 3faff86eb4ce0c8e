//! Dropped on purpose: by filters, programs and firewalls.

use crate::require;
use crate::stage::{Stage, VM, VM6};
use crate::tracer::{Expected, Tracer, kind};
use crate::xdp;

/// Classic BPF as a tc program: drop IPv4, let everything else pass. (`_` is a blank in an argument.)
const DROP_IPV4: &str = "4,40_0_0_12,21_0_1_2048,6_0_0_2,6_0_0_4294967295";

#[test]
fn a_filter_at_tc_ingress() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["TC_INGRESS"],
        hop: "tc",
        symbols: &[
            "__netif_receive_skb",
            "sch_handle_ingress",
            "tc_run",
            "sch_handle",
        ],
        device: "up0",
        space: &stage.node,
    };
    let cause = || {
        stage.node.tc("qdisc add dev up0 clsact");
        stage.node.tc(&format!(
            "filter add dev up0 ingress bpf da bytecode {DROP_IPV4}"
        ));
    };
    kind(&stage, &tracer, &expected, 5, cause, || stage.send(VM, 5));
}

#[test]
fn a_filter_at_tc_egress() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["TC_EGRESS"],
        hop: "tc",
        symbols: &["__dev_queue_xmit", "sch_handle_egress"],
        device: "vm0",
        space: &stage.node,
    };
    let cause = || {
        stage.node.tc("qdisc add dev vm0 clsact");
        stage.node.tc(&format!(
            "filter add dev vm0 egress bpf da bytecode {DROP_IPV4}"
        ));
    };
    kind(&stage, &tracer, &expected, 5, cause, || stage.send(VM, 5));
}

#[test]
fn a_firewall_rule_in_either_family_and_direction() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["NETFILTER_DROP"],
        hop: "netfilter",
        symbols: &["nf_", "nft_"],
        device: "vm0",
        space: &stage.node,
    };
    let record = kind(
        &stage,
        &tracer,
        &expected,
        5,
        || {
            stage.node.nft(
                "table inet t { chain f { type filter hook postrouting priority 0; udp dport 7777 drop; }; }",
            );
        },
        || stage.send(VM, 5),
    );
    assert_eq!(record["direction"], "to-vm");
    assert_eq!(record["protocol"], "UDP");
    assert_eq!(record["source"], crate::stage::CLIENT);
    assert_eq!(record["length"], 100);
    assert_eq!(
        record["source_port"],
        stage.sender().local_addr().unwrap().port()
    );

    stage.send(VM6, 3);
    for record in tracer.expect(3, &expected) {
        assert_eq!(
            (&record["destination"], &record["length"]),
            (&VM6.into(), &120.into())
        );
    }

    // What the VM sends.
    let from_vm = stage.vm.socket("0.0.0.0:0");
    from_vm
        .send_to(&[1; 20], (crate::stage::CLIENT, 7777))
        .unwrap();
    let expected = Expected {
        device: "up0",
        ..expected
    };
    let told = tracer.expect(1, &expected);
    assert_eq!(told[0]["direction"], "from-vm", "{told:#?}");
    assert_eq!(told[0]["source"], VM);
}

#[test]
fn an_xdp_program() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        // The reason XDP is given by drivers only.
        reasons: &["XDP", "NOT_SPECIFIED"],
        hop: "xdp",
        symbols: &[
            "do_xdp_generic",
            "bpf_prog_run_generic_xdp",
            "netif_receive_generic_xdp",
            "__netif_receive_skb",
        ],
        device: "up0",
        space: &stage.node,
    };
    let cause = || xdp::drop_everything(&stage.node, "up0");
    kind(&stage, &tracer, &expected, 5, cause, || stage.send(VM, 5));
}
