//! Devices and their counters.

use std::time::Instant;

use katamaran::net::counters::CounterReader;
use katamaran::net::link::LinkKind;

use crate::support::{Net, TAP, Tap, pair, require_root, send_numbered, wait_until};

#[tokio::test]
async fn a_device_is_described_as_it_is() {
    require_root!();
    let (a, _b) = pair("left", "right", 1400);
    a.ip("link set left txqueuelen 77 address 02:00:00:00:00:07");
    let link = a.netlink().link_by_name("left").await.unwrap();
    assert_eq!(link.kind, LinkKind::Veth);
    assert_eq!((link.mtu, link.txqlen), (1400, 77));
    assert_eq!(link.mac.unwrap().to_string(), "02:00:00:00:00:07");
    assert!(link.up && link.carrier);
    assert_eq!(
        a.netlink().link_by_index(link.index).await.unwrap().name,
        "left"
    );
}

#[tokio::test]
async fn a_tap_has_carrier_only_while_it_is_open() {
    require_root!();
    let net = Net::new();
    net.ip("tuntap add dev tap0 mode tap");
    net.ip("link set tap0 up");
    let link = net.netlink().link_by_name(TAP).await.unwrap();
    assert_eq!(link.kind, LinkKind::Tun);
    assert!(link.up && !link.carrier);
}

#[tokio::test]
async fn deleting_a_device_twice_succeeds() {
    require_root!();
    let net = Net::new();
    let netlink = net.netlink();
    net.ip("link add br0 type bridge");
    let index = netlink.link_by_name("br0").await.unwrap().index;
    netlink.delete_link(index).await.unwrap();
    netlink.delete_link(index).await.unwrap();
    assert!(netlink.set_up(index).await.unwrap_err().already_gone());
}

#[tokio::test]
async fn a_refusal_carries_the_kernels_words() {
    require_root!();
    let (a, _b) = pair("left", "right", 1500);
    let netlink = a.netlink();
    let index = netlink.link_by_name("left").await.unwrap().index;
    let error = netlink.set_mtu(index, 3_000_000_000).await.unwrap_err();
    assert!(error.to_string().contains("(kernel: "), "{error}");
}

#[tokio::test]
async fn the_quick_counters_agree_with_the_full_ones() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    let mut reader = CounterReader::open(&net.netns, tap.index).unwrap();
    send_numbered(&net, 0..10);
    drop(tap.files);
    // Not at once: another test's child holds copies of all descriptors until it has started.
    wait_until("the tap ends", || {
        reader.read().is_err_and(|error| error.already_gone())
    });

    let (a, _b) = pair("left", "right", 1500);
    a.ip("addr add 10.1.0.1/24 dev left");
    a.ip("neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev left");
    let socket = a.udp("10.1.0.1:0");
    for _ in 0..25 {
        socket.send_to(b"x", "10.1.0.2:9").unwrap();
    }
    let link = a.netlink().link_by_name("left").await.unwrap();
    let quick = CounterReader::open(&a.netns, link.index)
        .unwrap()
        .read()
        .unwrap();
    assert_eq!(quick, link.counters);
    assert_eq!(quick.tx_packets, 25);
}

#[test]
fn counters_can_be_polled() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    let mut reader = CounterReader::open(&net.netns, tap.index).unwrap();
    let start = Instant::now();
    for _ in 0..2000 {
        reader.read().unwrap();
    }
    let each = start.elapsed() / 2000;
    println!("one reading of the counters: {each:?}");
    assert!(each.as_micros() < 500, "{each:?}");
}
