//! Routes, addresses, neighbours, and the device that leads to the VM.

use std::net::IpAddr;

use katamaran::net::NetError;
use katamaran::net::link::MacAddr;
use katamaran::net::packet::{FrameInjector, VnetHeader};

use crate::support::{NODE, Net, VM, pair, require_root, udp_frame};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node() -> (Net, Net) {
    let (a, b) = pair("left", "right", 1500);
    a.ip("addr add 10.1.0.1/24 dev left");
    a.ip("-6 addr add fd00:1::1/64 dev left nodad");
    (a, b)
}

#[tokio::test]
async fn a_route_names_device_gateway_source_and_mtu() {
    require_root!();
    let (a, _b) = node();
    a.ip("route add 10.2.0.0/16 via 10.1.0.254 dev left mtu 1300");
    a.ip("-6 route add fd00:2::/64 via fd00:1::fe dev left");
    let netlink = a.netlink();
    let left = netlink.link_by_name("left").await.unwrap().index;

    let near = netlink.route_get(ip("10.1.0.9")).await.unwrap();
    assert_eq!((near.device, near.gateway, near.mtu), (left, None, None));
    assert_eq!(near.source, Some(ip("10.1.0.1")));

    let far = netlink.route_get(ip("10.2.3.4")).await.unwrap();
    assert_eq!((far.gateway, far.mtu), (Some(ip("10.1.0.254")), Some(1300)));
    assert_eq!(netlink.path_mtu(ip("10.2.3.4")).await.unwrap(), 1300);
    assert_eq!(netlink.path_mtu(ip("10.1.0.9")).await.unwrap(), 1500);

    let far6 = netlink.route_get(ip("fd00:2::1")).await.unwrap();
    assert_eq!((far6.device, far6.gateway), (left, Some(ip("fd00:1::fe"))));
    assert_eq!(far6.source, Some(ip("fd00:1::1")));
}

#[tokio::test]
async fn an_address_without_a_usable_route_is_an_error() {
    require_root!();
    let (a, _b) = node();
    a.ip("route add unreachable 10.66.0.0/16");
    let netlink = a.netlink();
    assert!(netlink.route_get(ip("10.99.0.1")).await.is_err());
    assert!(netlink.route_get(ip("10.66.0.1")).await.is_err());
    assert!(netlink.route_get(ip("10.1.0.1")).await.unwrap().local);
    let own = netlink.towards_vm(ip("10.1.0.1"), None).await.unwrap_err();
    assert!(matches!(own, NetError::WrongKind { .. }), "{own:?}");
}

#[tokio::test]
async fn the_underlay_is_our_end_of_the_way_to_the_peer() {
    require_root!();
    let (a, _b) = node();
    a.ip("route add 10.2.0.0/16 via 10.1.0.254 dev left mtu 1300");
    let underlay = a.netlink().underlay(ip("10.2.3.4")).await.unwrap();
    assert_eq!(underlay.local, ip("10.1.0.1"));
    assert_eq!(underlay.device_name, "left");
    assert_eq!(underlay.gateway, Some(ip("10.1.0.254")));
    assert_eq!(underlay.mtu, 1300);
}

#[tokio::test]
async fn local_addresses_are_listed() {
    require_root!();
    let (a, _b) = node();
    a.ip("addr add 10.3.0.1 peer 10.3.0.2/32 dev left");
    let addresses = a.netlink().local_addresses().await.unwrap();
    let has = |text: &str| addresses.iter().any(|entry| entry.address == ip(text));
    for ours in ["127.0.0.1", "10.1.0.1", "fd00:1::1", "10.3.0.1"] {
        assert!(has(ours), "{ours} in {addresses:?}");
    }
    assert!(!has("10.3.0.2"), "a peer's address is not ours");
}

#[tokio::test]
async fn neighbours_are_looked_up_one_by_one() {
    require_root!();
    let (a, _b) = node();
    a.ip("neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev left");
    a.ip("neigh add fd00:1::2 lladdr 02:00:00:00:00:06 dev left");
    let netlink = a.netlink();
    let left = netlink.link_by_name("left").await.unwrap().index;
    let v4 = netlink
        .neighbour(left, ip("10.1.0.2"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(v4.mac, Some(MacAddr([2, 0, 0, 0, 0, 2])));
    assert!(v4.is_resolved());
    let v6 = netlink
        .neighbour(left, ip("fd00:1::2"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(v6.mac, Some(MacAddr([2, 0, 0, 0, 0, 6])));
    assert_eq!(netlink.neighbour(left, ip("10.1.0.3")).await.unwrap(), None);
}

#[tokio::test]
async fn an_introduced_neighbour_need_not_be_asked_for() {
    require_root!();
    let (a, _b) = node();
    let netlink = a.netlink();
    let left = netlink.link_by_name("left").await.unwrap().index;
    for (address, mac) in [("10.1.0.7", 7), ("fd00:1::7", 8), ("10.1.0.7", 9)] {
        let mac = MacAddr([2, 0, 0, 0, 0, mac]);
        netlink.introduce(left, ip(address), mac).await.unwrap();
        let entry = netlink.neighbour(left, ip(address)).await.unwrap().unwrap();
        assert_eq!(entry.mac, Some(mac), "a newer introduction replaces");
        assert!(entry.is_resolved());
    }
}

#[tokio::test]
async fn a_routed_vm_is_behind_the_routes_device() {
    require_root!();
    let (a, _b) = pair("cali1", "right", 1500);
    a.ip("route add 10.8.0.5/32 dev cali1 scope link");
    let found = a.netlink().towards_vm(ip("10.8.0.5"), None).await.unwrap();
    assert_eq!(found.device.name, "cali1");
    assert!(found.bridge.is_none());
}

#[tokio::test]
async fn a_bridged_vm_is_behind_the_port_that_saw_it() {
    require_root!();
    let net = Net::new();
    for bridge in ["other", "br0"] {
        net.ip(&format!("link add {bridge} type bridge"));
        for port in 1..=3 {
            net.ip(&format!(
                "link add {bridge}p{port} type veth peer name {bridge}q{port}"
            ));
            net.ip(&format!("link set {bridge}p{port} master {bridge} up"));
            net.ip(&format!("link set {bridge}q{port} up"));
        }
    }
    net.ip("addr add 10.8.0.1/24 dev br0");
    net.ip("link set other up");
    net.ip("link set br0 up");
    let netlink = net.netlink();
    let vm = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

    let unseen = netlink
        .towards_vm(ip("10.8.0.5"), Some(vm))
        .await
        .unwrap_err();
    assert!(unseen.to_string().contains("--redirect-dev"), "{unseen}");

    // The same address on another bridge must not be taken for ours.
    for port in ["otherq1", "br0q2"] {
        let index = netlink.link_by_name(port).await.unwrap().index;
        let mut injector = FrameInjector::open(&net.netns, index).unwrap();
        let frame = udp_frame((MacAddr([0xff; 6]), NODE), (vm, VM), 9, b"learn me");
        injector.inject(VnetHeader::default(), &frame).unwrap();
    }
    let found = netlink.towards_vm(ip("10.8.0.5"), Some(vm)).await.unwrap();
    assert_eq!(found.device.name, "br0p2");
    assert_eq!(found.bridge.unwrap().name, "br0");

    // Without the address from QMP the neighbour entry tells it.
    net.ip(&format!("neigh add 10.8.0.5 lladdr {vm} dev br0"));
    let found = netlink.towards_vm(ip("10.8.0.5"), None).await.unwrap();
    assert_eq!(found.device.name, "br0p2");
}

#[tokio::test]
async fn a_bridges_own_address_is_behind_no_port() {
    require_root!();
    let net = Net::new();
    net.ip("link add br0 type bridge");
    net.ip("link add p1 type veth peer name q1");
    net.ip("link set p1 master br0");
    net.ip("link set br0 up");
    let netlink = net.netlink();
    let bridge = netlink.link_by_name("br0").await.unwrap();
    assert_eq!(
        netlink
            .bridge_port(bridge.index, bridge.mac.unwrap())
            .await
            .unwrap(),
        None
    );
}
