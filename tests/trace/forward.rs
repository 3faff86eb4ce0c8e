//! Dropped where the node forwards: headers, routes, sizes, neighbours.

use std::os::fd::AsRawFd as _;

use crate::frame::{self, Frame};
use crate::require;
use crate::stage::{NOBODY, Stage, VM};
use crate::tracer::{Expected, Tracer, kind};

#[test]
fn no_route() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        // Before Linux 6.14 the kernel says only where.
        reasons: &["IP_INNOROUTES", "NOT_SPECIFIED"],
        hop: "routing",
        symbols: &["ip_rcv_finish", "ip_error", "ip_route_input"],
        device: "up0",
        space: &stage.node,
    };
    let cause = || stage.node.ip(&format!("route del {VM}/32"));
    kind(&stage, &tracer, &expected, 3, cause, || stage.send(VM, 3));
}

#[test]
fn the_way_back_is_another_device() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["IP_RPFILTER"],
        hop: "routing",
        symbols: &["ip_rcv_finish", "ip_rcv_core", "ip_route"],
        device: "up0",
        space: &stage.node,
    };
    let cause = || {
        stage.node.sysctl("ipv4/conf/up0/rp_filter", "1");
        // The client is said to be elsewhere.
        stage.node.ip("route add 10.80.0.2/32 dev vm0");
    };
    kind(&stage, &tracer, &expected, 3, cause, || stage.send(VM, 3));
}

#[test]
fn a_packet_at_the_end_of_its_lifetime() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["IP_INHDR"],
        hop: "ip",
        symbols: &["ip_forward"],
        device: "up0",
        space: &stage.node,
    };
    let cause = || stage.sender().set_ttl(1).unwrap();
    kind(&stage, &tracer, &expected, 3, cause, || stage.send(VM, 3));
}

#[test]
fn a_packet_that_is_too_big() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let discover = libc::IP_PMTUDISC_PROBE;
    // SAFETY: an open socket, and a value of the given size that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            stage.sender().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const discover).cast(),
            libc::socklen_t::try_from(size_of_val(&discover)).unwrap(),
        )
    };
    assert_eq!(set, 0);
    let expected = Expected {
        reasons: &["PKT_TOO_BIG"],
        hop: "ip",
        symbols: &["ip_forward"],
        device: "up0",
        space: &stage.node,
    };
    let cause = || stage.node.ip("link set vm0 mtu 1000");
    let record = kind(&stage, &tracer, &expected, 3, cause, || {
        stage.send_sized(VM, 3, 1172);
    });
    assert_eq!(record["length"], 1200);
}

#[test]
fn a_header_with_a_wrong_checksum() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    frame::send(&stage.client, "eth0", Frame::default());
    stage.receive(1);
    tracer.expect_silence("a frame without a flaw");
    let bad = Frame {
        bad_header_checksum: true,
        ..Frame::default()
    };
    frame::send(&stage.client, "eth0", bad);
    let expected = Expected {
        reasons: &["IP_CSUM"],
        hop: "ip",
        symbols: &["ip_rcv"],
        device: "up0",
        space: &stage.node,
    };
    tracer.expect(1, &expected);
}

#[test]
fn a_neighbour_that_does_not_answer_and_too_many_that_wait_for_it() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    tracer.expect_silence("nobody was asked for yet");
    stage.node.sysctl("ipv4/neigh/vm0/mcast_solicit", "1");
    stage.node.sysctl("ipv4/neigh/vm0/retrans_time_ms", "100");
    stage.send(NOBODY, 1);
    let failed = Expected {
        reasons: &["NEIGH_FAILED"],
        hop: "neighbour",
        symbols: &["arp_error_report", "neigh_"],
        device: "vm0",
        space: &stage.node,
    };
    let told = tracer.expect(1, &failed);
    assert_eq!(told[0]["destination"], NOBODY, "{told:#?}");

    stage.node.sysctl("ipv4/neigh/vm0/retrans_time_ms", "60000");
    stage.node.sysctl("ipv4/neigh/vm0/unres_qlen_bytes", "1");
    stage.node.ip("neigh flush dev vm0 nud failed");
    stage.send(NOBODY, 4);
    let full = Expected {
        reasons: &["NEIGH_QUEUEFULL"],
        symbols: &["__neigh_event_send", "neigh_"],
        ..failed
    };
    tracer.expect(3, &full);
}
