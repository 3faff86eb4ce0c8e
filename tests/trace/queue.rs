//! Dropped by queueing disciplines.

use crate::require;
use crate::stage::{Stage, VM};
use crate::tracer::{Expected, Tracer, kind};

/// Linux 6.1 tells who frees lists of packets, not for whom.
pub(crate) const TRANSMIT: [&str; 4] = [
    "__dev_queue_xmit",
    "__dev_xmit_skb",
    "dev_qdisc_enqueue",
    "kfree_skb_list_reason",
];

/// In the transmit path, on the VM's device.
fn at_the_qdisc(stage: &Stage) -> Expected<'_> {
    Expected {
        reasons: &["QDISC_DROP", "QDISC_OVERLIMIT"],
        hop: "qdisc",
        symbols: &TRANSMIT,
        device: "vm0",
        space: &stage.node,
    }
}

#[test]
fn a_full_tbf() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let cause = || {
        stage
            .node
            .tc("qdisc replace dev vm0 root handle 7: tbf rate 8kbit burst 200 limit 200");
    };
    let expected = at_the_qdisc(&stage);
    let record = kind(&stage, &tracer, &expected, 10, cause, || stage.send(VM, 20));
    assert_eq!(record["qdisc"], "tbf 7:", "{record:#?}");
}

/// The packet is dropped by the class's own queue; the device's discipline is the one above.
#[test]
fn a_full_class_of_htb() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let cause = || {
        let node = &stage.node;
        node.tc("qdisc replace dev vm0 root handle 8: htb default 1");
        node.tc("class add dev vm0 parent 8: classid 8:1 htb rate 8kbit burst 200 quantum 1500");
        node.tc("qdisc add dev vm0 parent 8:1 pfifo limit 1");
    };
    let expected = at_the_qdisc(&stage);
    let record = kind(&stage, &tracer, &expected, 10, cause, || stage.send(VM, 20));
    assert_eq!(record["qdisc"], "htb 8:", "{record:#?}");
}

/// What a discipline holds is lost when it is removed: the danger of every plug.
#[test]
fn a_discipline_that_is_removed_with_what_it_holds() {
    require!();
    let stage = Stage::new();
    stage
        .node
        .tc("qdisc replace dev vm0 root handle 7: tbf rate 8kbit burst 2000 limit 100000");
    let tracer = Tracer::start(&stage);
    // Half a minute's worth.
    stage.send_sized(VM, 30, 972);
    tracer.expect_silence("they wait");
    stage.node.tc("qdisc del dev vm0 root");
    let expected = Expected {
        reasons: &["NOT_SPECIFIED", "QUEUE_PURGE", "QDISC_DROP"],
        hop: "qdisc",
        symbols: &["__rtnl_unlock", "rtnl_", "qdisc_", "__qdisc_"],
        ..at_the_qdisc(&stage)
    };
    tracer.expect(5, &expected);
}

/// The only drop here that needs a module this kernel may not have.
#[test]
fn a_plug_that_overflows() {
    require!();
    let stage = Stage::new();
    let plugged = stage.node.netns().command(
        "tc",
        &[
            "qdisc", "add", "dev", "vm0", "root", "handle", "9:", "plug", "limit", "300",
        ],
    );
    if plugged.is_err() {
        println!("SKIP a_plug_that_overflows: no sch_plug");
        return;
    }
    let tracer = Tracer::start(&stage);
    stage.send(VM, 10);
    let record = tracer.expect(5, &at_the_qdisc(&stage))[0].clone();
    assert_eq!(record["qdisc"], "plug 9:", "{record:#?}");
}
