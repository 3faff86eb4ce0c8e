//! Dropped where the packet should have been taken: by the VM's own kernel, which is a namespace here.

use std::os::fd::AsFd as _;

use nix::sys::socket::{setsockopt, sockopt};

use crate::frame::{self, Frame};
use crate::require;
use crate::stage::{Space, Stage, VM};
use crate::tracer::{Expected, Tracer, kind};

fn at_the_vm<'a>(space: &'a Space, reasons: &'a [&'a str], symbols: &'a [&'a str]) -> Expected<'a> {
    Expected {
        reasons,
        hop: "socket",
        symbols,
        device: "eth0",
        space,
    }
}

#[test]
fn nobody_listens() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    tracer.expect_silence("nothing was sent");
    let frame = Frame {
        port: 4321,
        ..Frame::default()
    };
    frame::send(&stage.client, "eth0", frame);
    let expected = at_the_vm(&stage.vm, &["NO_SOCKET"], &["__udp4_lib_rcv", "udp_"]);
    let told = tracer.expect(1, &expected);
    assert_eq!(told[0]["destination_port"], 4321);
    assert_eq!(told[0]["source_port"], 4000);
}

#[test]
fn a_datagram_with_a_wrong_checksum() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    tracer.expect_silence("nothing was sent");
    let frame = Frame {
        port: 4321,
        bad_udp_checksum: true,
        ..Frame::default()
    };
    frame::send(&stage.client, "eth0", frame);
    let expected = at_the_vm(&stage.vm, &["UDP_CSUM"], &["__udp4_lib_rcv", "udp_"]);
    tracer.expect(1, &expected);
}

/// The packet's own device field is used for something else by then.
#[test]
fn a_full_receive_buffer() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    stage.send(VM, 20);
    stage.receive(20);
    tracer.expect_silence("the buffer is large");
    setsockopt(&stage.listener.as_fd(), sockopt::RcvBuf, &1).unwrap();
    stage.send(VM, 40);
    let expected = at_the_vm(
        &stage.vm,
        &["SOCKET_RCVBUFF", "PROTO_MEM"],
        &["__udp_enqueue_schedule_skb", "udp_", "__udp_", "udpv6_"],
    );
    tracer.expect(20, &expected);
}

#[test]
fn a_frame_to_another_mac() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    let expected = Expected {
        reasons: &["OTHERHOST"],
        hop: "ip",
        symbols: &["ip_rcv"],
        device: "eth0",
        space: &stage.vm,
    };
    let cause = || {
        stage.node.ip(&format!(
            "neigh replace {VM} lladdr 02:00:00:00:00:77 dev vm0"
        ));
    };
    kind(&stage, &tracer, &expected, 3, cause, || stage.send(VM, 3));
}
