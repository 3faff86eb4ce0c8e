//! The session's VXLAN tunnel.

use std::net::IpAddr;

use katamaran::net::NetError;
use katamaran::net::counters::CounterReader;
use katamaran::net::link::{LinkKind, MacAddr};
use katamaran::net::names::session_link;
use katamaran::net::packet::{FrameInjector, VnetHeader};
use katamaran::net::vxlan::{Vxlan, VxlanSpec};
use katamaran::role::Role;
use katamaran::session_id::SessionId;

use crate::support::{Net, pair, require_root, udp_frame, wait_until};

const SESSION: SessionId = SessionId(0x0123_4567_89ab_cdef);
const PORT: u16 = 7483;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn underlay(mtu: u32) -> (Net, Net) {
    let (a, b) = pair("left", "right", mtu);
    a.ip("addr add 10.1.0.1/24 dev left");
    b.ip("addr add 10.1.0.2/24 dev right");
    a.ip("-6 addr add fd00:1::1/64 dev left nodad");
    b.ip("-6 addr add fd00:1::2/64 dev right nodad");
    (a, b)
}

fn spec(role: Role, local: &str, remote: &str) -> VxlanSpec {
    VxlanSpec {
        session: SESSION,
        role,
        local: ip(local),
        remote: ip(remote),
        port: PORT,
        vm_mtu: 1500,
        txqlen: 5000,
    }
}

async fn ends(a: &Net, b: &Net, left: &str, right: &str) -> (Vxlan, Vxlan) {
    let source = Vxlan::create(&a.netlink(), &spec(Role::Source, left, right))
        .await
        .unwrap();
    let destination = Vxlan::create(&b.netlink(), &spec(Role::Destination, right, left))
        .await
        .unwrap();
    (source, destination)
}

/// Sends `count` whole, unfragmentable IP packets of 1500 bytes into one end and takes them out of
/// the other.
async fn pass(from: (&Net, &Vxlan, &str), to: (&Net, &Vxlan, &str), count: u8) {
    let from_link = from.1.link().info().await.unwrap();
    let to_link = to.1.link().info().await.unwrap();
    let socket = to.0.udp(&format!("{}:6000", to.2));
    let mut injector = FrameInjector::open(&from.0.netns, from_link.index).unwrap();
    let (IpAddr::V4(from_ip), IpAddr::V4(to_ip)) = (ip(from.2), ip(to.2)) else {
        panic!()
    };
    for n in 0..count {
        let payload = [n; 1500 - 28];
        let frame = udp_frame(
            (to_link.mac.unwrap(), to_ip),
            (from_link.mac.unwrap(), from_ip),
            6000,
            &payload,
        );
        assert_eq!(frame.len(), 1514);
        injector.inject(VnetHeader::default(), &frame).unwrap();
        let mut buffer = [0; 2000];
        let (length, _) = socket.recv_from(&mut buffer).expect("the packet arrives");
        assert_eq!(buffer[..length], payload);
    }
}

fn addresses(a: &Net, b: &Net, ends: &(Vxlan, Vxlan)) {
    a.ip(&format!("addr add 192.168.7.1/24 dev {}", ends.0.name()));
    b.ip(&format!("addr add 192.168.7.2/24 dev {}", ends.1.name()));
}

#[tokio::test]
async fn whole_unfragmentable_packets_pass_an_underlay_of_the_same_mtu_both_ways() {
    require_root!();
    let (a, b) = underlay(1500);
    let ends = ends(&a, &b, "10.1.0.1", "10.1.0.2").await;
    addresses(&a, &b, &ends);
    let left = a.netlink().link_by_name("left").await.unwrap().counters;
    pass(
        (&a, &ends.0, "192.168.7.1"),
        (&b, &ends.1, "192.168.7.2"),
        20,
    )
    .await;
    pass(
        (&b, &ends.1, "192.168.7.2"),
        (&a, &ends.0, "192.168.7.1"),
        20,
    )
    .await;
    let now = a.netlink().link_by_name("left").await.unwrap().counters;
    assert!(
        now.tx_packets - left.tx_packets >= 40,
        "each packet went in two pieces: {now:?}"
    );
}

#[tokio::test]
async fn a_super_packet_is_cut_into_whole_packets_which_all_arrive() {
    require_root!();
    const SEGMENTS: u64 = 10;
    let (a, b) = underlay(1500);
    let ends = ends(&a, &b, "10.1.0.1", "10.1.0.2").await;
    let to = ends.1.link().info().await.unwrap();
    let frame = tcp_frame(to.mac.unwrap(), 1460 * 10);
    // Checksum to be finished; TCP over IPv4; 54 bytes of headers; 1460 in each segment.
    let header = VnetHeader([1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0]);
    assert_eq!(header.wire_segments(frame.len()), SEGMENTS);
    let mut injector = FrameInjector::open(&a.netns, ends.0.index()).unwrap();
    injector.inject(header, &frame).unwrap();
    let mut counters = CounterReader::open(&b.netns, to.index).unwrap();
    wait_until("all segments arrive", || {
        counters.read().unwrap().rx_packets == SEGMENTS
    });
    assert_eq!(counters.read().unwrap().rx_bytes, SEGMENTS * 1500);
}

/// A TCP packet that is too long for the wire, without checksums.
fn tcp_frame(to: MacAddr, payload: u16) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]);
    frame.extend((40 + payload).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 168, 7, 1, 192, 168, 7, 2]);
    frame.extend([
        0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    frame.resize(54 + usize::from(payload), 7);
    frame
}

#[tokio::test]
async fn an_ipv6_underlay_carries_whole_packets_where_they_fit() {
    require_root!();
    let (a, b) = underlay(1570);
    let ends = ends(&a, &b, "fd00:1::1", "fd00:1::2").await;
    addresses(&a, &b, &ends);
    pass(
        (&a, &ends.0, "192.168.7.1"),
        (&b, &ends.1, "192.168.7.2"),
        5,
    )
    .await;
    pass(
        (&b, &ends.1, "192.168.7.2"),
        (&a, &ends.0, "192.168.7.1"),
        5,
    )
    .await;
}

#[tokio::test]
async fn an_ipv6_underlay_that_is_too_small_is_refused() {
    require_root!();
    let (a, _b) = underlay(1569);
    let spec = spec(Role::Source, "fd00:1::1", "fd00:1::2");
    let error = Vxlan::create(&a.netlink(), &spec).await.unwrap_err();
    assert!(
        matches!(
            error,
            NetError::UnderlayMtu {
                needed: 1570,
                available: 1569,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        a.netlink()
            .link_by_name(&session_link(Role::Source, SESSION))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_device_is_named_sized_and_silent() {
    require_root!();
    let (a, b) = underlay(1500);
    let ends = ends(&a, &b, "10.1.0.1", "10.1.0.2").await;
    let link = ends.0.link().info().await.unwrap();
    assert_eq!(link.name, "ktms0123456789a");
    assert_eq!(ends.1.name(), "ktmd0123456789a");
    assert_eq!(ends.0.vni(), 0x00ab_cdef);
    assert_eq!(
        (link.kind, link.mtu, link.txqlen, link.up),
        (LinkKind::Vxlan, 1500, 5000, true)
    );
    let addresses = a.netlink().local_addresses().await.unwrap();
    assert!(
        !addresses.iter().any(|entry| entry.device == link.index),
        "{addresses:?}"
    );
    // Both ends have been up since; a device that talks by itself would have begun.
    pass_quietly(&a, &ends).await;
}

async fn pass_quietly(a: &Net, ends: &(Vxlan, Vxlan)) {
    let before = ends.1.link().info().await.unwrap().counters.rx_packets;
    let to = ends.1.link().info().await.unwrap().mac.unwrap();
    let mut injector = FrameInjector::open(&a.netns, ends.0.index()).unwrap();
    injector.bait(to, SESSION).unwrap();
    let sent = ends.0.link().info().await.unwrap().counters.tx_packets;
    assert_eq!((before, sent), (0, 1), "nothing but our own frame was sent");
}

#[tokio::test]
async fn a_stale_device_of_the_same_name_is_replaced() {
    require_root!();
    let (a, _b) = underlay(1500);
    let netlink = a.netlink();
    let spec = spec(Role::Source, "10.1.0.1", "10.1.0.2");
    let stale = Vxlan::create(&netlink, &spec).await.unwrap();
    let stale_index = stale.index();
    drop(stale);
    let fresh = Vxlan::create(&netlink, &spec).await.unwrap();
    assert_ne!(fresh.index(), stale_index);
    let name = fresh.name().to_owned();
    fresh.remove().await.unwrap();
    assert!(
        netlink
            .link_by_name(&name)
            .await
            .unwrap_err()
            .already_gone()
    );
}

#[tokio::test]
async fn removing_a_device_that_is_gone_succeeds() {
    require_root!();
    let (a, _b) = underlay(1500);
    let spec = spec(Role::Source, "10.1.0.1", "10.1.0.2");
    let tunnel = Vxlan::create(&a.netlink(), &spec).await.unwrap();
    a.ip(&format!("link del {}", tunnel.name()));
    tunnel.remove().await.unwrap();
}

#[tokio::test]
async fn a_second_tunnel_with_the_same_identifier_says_what_is_in_the_way() {
    require_root!();
    let (a, _b) = underlay(1500);
    let first = spec(Role::Source, "10.1.0.1", "10.1.0.2");
    let tunnel = Vxlan::create(&a.netlink(), &first).await.unwrap();
    let second = VxlanSpec {
        role: Role::Destination,
        ..first
    };
    let error = Vxlan::create(&a.netlink(), &second).await.unwrap_err();
    assert!(error.already_exists(), "{error:?}");
    assert!(error.to_string().contains("(kernel: "), "{error}");
    tunnel.remove().await.unwrap();
}

#[tokio::test]
async fn ends_of_different_families_are_refused() {
    require_root!();
    let (a, _b) = underlay(1500);
    let mixed = spec(Role::Source, "10.1.0.1", "fd00:1::2");
    assert!(Vxlan::create(&a.netlink(), &mixed).await.is_err());
}
