//! Frames put into a tap past its queueing discipline.

use katamaran::net::NetError;
use katamaran::net::link::MacAddr;
use katamaran::net::packet::{FrameInjector, VnetHeader, is_bait};
use katamaran::session_id::SessionId;

use crate::support::{
    NODE, Net, TAP, Tap, VM, VM_MAC, number, numbered_frame, require_root, send_numbered, udp_frame,
};

#[tokio::test]
async fn an_injected_frame_goes_ahead_of_what_the_qdisc_holds() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    // A rate of next to nothing stands in for a plug: it lets few packets by and holds the rest.
    net.tc(&format!(
        "qdisc add dev {TAP} root tbf rate 8bit burst 1600 limit 1000000"
    ));
    send_numbered(&net, 0..100);
    let held = net.netlink().root_qdisc(tap.index).await.unwrap();
    assert_eq!(held.kind, "tbf");
    assert!(held.qlen > 0 && held.drops == 0, "{held:?}");
    let passed = tap.read_all().len();
    assert_eq!(passed + usize::try_from(held.qlen).unwrap(), 100);

    let mut injector = FrameInjector::open(&net.netns, tap.index).unwrap();
    injector
        .inject(VnetHeader::default(), &numbered_frame(9999))
        .unwrap();
    assert_eq!(injector.injected(), 1);
    let frames = tap.read_all();
    assert_eq!(frames.len(), 1);
    assert_eq!(number(&frames[0]), 9999);
    assert_eq!(
        net.netlink().root_qdisc(tap.index).await.unwrap().qlen,
        held.qlen
    );
}

#[test]
fn a_bait_is_the_first_thing_that_a_reader_gets() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let mut injector = FrameInjector::open(&net.netns, tap.index).unwrap();
    injector.bait(VM_MAC, SessionId(7)).unwrap();
    send_numbered(&net, 0..3);
    let frames = tap.read_all();
    assert!(is_bait(&frames[0]));
    assert_eq!(
        frames[1..]
            .iter()
            .map(|frame| number(frame))
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
}

#[test]
fn a_full_ring_and_a_frame_too_long_are_told_apart() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    net.ip(&format!("link set {TAP} txqueuelen 8"));
    let mut injector = FrameInjector::open(&net.netns, tap.index).unwrap();
    let mut sent = 0;
    let error = loop {
        match injector.inject(VnetHeader::default(), &numbered_frame(sent)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 100, "the ring never fills");
    };
    assert!(matches!(error, NetError::NoRoom { .. }), "{error:?}");
    assert_eq!(injector.injected(), u64::from(sent));
    let long = udp_frame((VM_MAC, VM), (MacAddr([2; 6]), NODE), 9, &[0; 2000]);
    let error = injector.inject(VnetHeader::default(), &long).unwrap_err();
    assert!(matches!(error, NetError::FrameTooLong { length, .. } if length == long.len()));
    drop(tap);
    assert!(
        injector
            .inject(VnetHeader::default(), &numbered_frame(0))
            .is_err()
    );
}

#[test]
fn a_tap_that_nobody_has_open_takes_no_frame() {
    require_root!();
    let net = Net::new();
    net.ip("tuntap add dev tap0 mode tap vnet_hdr");
    net.ip("link set tap0 up");
    let index = net
        .netns
        .run(|| nix::net::if_::if_nametoindex(TAP).unwrap())
        .unwrap();
    let mut injector = FrameInjector::open(&net.netns, index).unwrap();
    let error = injector
        .inject(VnetHeader::default(), &numbered_frame(0))
        .unwrap_err();
    assert!(matches!(error, NetError::NoRoom { .. }), "{error:?}");
    assert_eq!(injector.injected(), 0);
}

#[test]
fn a_packet_that_was_read_from_one_tap_can_be_put_into_another() {
    require_root!();
    let (from, to) = (Net::new(), Net::new());
    let holder = Tap::new(&from).hand_over();
    let mut tap = Tap::new(&to);
    send_numbered(&from, 0..50);
    let found = katamaran::discover::tap(holder.pid(), Some(TAP)).unwrap();
    let queues = katamaran::net::tapfd::TapQueues::duplicate_fds(
        holder.pid(),
        &found.name,
        &found.descriptors,
    )
    .unwrap();
    let mut injector = FrameInjector::open(&to.netns, tap.index).unwrap();
    for frame in queues.read_unread(usize::MAX).unwrap() {
        injector.inject(frame.vnet_header, &frame.frame).unwrap();
    }
    let numbers: Vec<_> = tap.read_all().iter().map(|frame| number(frame)).collect();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
}
