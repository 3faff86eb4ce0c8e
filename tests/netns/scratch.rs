//! Trying what the kernel can do, and how much goes through.

use std::net::IpAddr;
use std::time::Duration;

use katamaran::ebpf;
use katamaran::net::reach::{Passage, link_rate, probe_path};
use katamaran::net::scratch::Scratch;

use crate::support::{Net, pair, require_root};

const PATIENCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn what_the_kernel_can_do_is_tried_where_nobody_is() {
    require_root!();
    let own = katamaran::net::NetNs::current().unwrap();
    let before = own.netlink().unwrap().links().await.unwrap().len();
    let scratch = Scratch::new().await.unwrap();
    assert_ne!(scratch.netns(), &own);
    for tried in [
        scratch.try_plug().await,
        scratch.try_vxlan(7483).await,
        scratch.try_device("ipip").await,
        scratch.try_device("gretap").await,
    ] {
        assert!(
            tried.as_ref().err().is_none_or(|error| error.unsupported()),
            "{tried:?}"
        );
    }
    let error = scratch.try_device("pigeon").await.unwrap_err();
    assert!(error.unsupported(), "{error:?}");
    scratch.try_device("veth").await.unwrap();
    assert_eq!(own.netlink().unwrap().links().await.unwrap().len(), before);
}

#[tokio::test]
async fn all_programs_are_tried_and_none_stays() {
    require_root!();
    if let Err(missing) = ebpf::object_state() {
        println!("SKIP all_programs_are_tried_and_none_stays: {missing}");
        return;
    }
    let scratch = Scratch::new().await.unwrap();
    let device = scratch.device();
    for _twice in 0..2 {
        let trial = scratch
            .netns()
            .run(|| ebpf::try_programs(device))
            .unwrap()
            .unwrap();
        trial.hooks.unwrap();
        trial.tracepoints.unwrap();
    }
    assert!(ebpf::drop_reasons().unwrap() > 50);
}

/// `a` and `b` with a router between them.
fn routed() -> (Net, Net, Net) {
    let (a, r) = pair("eth0", "left", 1500);
    let b = Net::new();
    r.ip(&format!(
        "link add right mtu 1500 type veth peer name eth0 mtu 1500 netns {}",
        b.path()
    ));
    let nodad = "nodad";
    for (net, device, subnet, host) in [
        (&a, "eth0", 1, 2),
        (&r, "left", 1, 1),
        (&r, "right", 2, 1),
        (&b, "eth0", 2, 2),
    ] {
        net.ip(&format!("addr add 10.9.{subnet}.{host}/24 dev {device}"));
        net.ip(&format!(
            "addr add fd09:{subnet}::{host}/64 dev {device} {nodad}"
        ));
        net.ip(&format!("link set {device} up"));
    }
    for (net, subnet) in [(&a, 1), (&b, 2)] {
        net.ip(&format!("route add default via 10.9.{subnet}.1"));
        net.ip(&format!("-6 route add default via fd09:{subnet}::1"));
    }
    r.netns
        .run(|| {
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
            }
        })
        .unwrap();
    (a, r, b)
}

#[tokio::test]
async fn a_narrow_link_further_on_is_found_by_a_packet_that_may_not_be_cut() {
    require_root!();
    let (a, r, _b) = routed();
    let netlink = a.netlink();
    let both: [IpAddr; 2] = ["10.9.2.2".parse().unwrap(), "fd09:2::2".parse().unwrap()];
    for peer in both {
        let underlay = netlink.underlay(peer).await.unwrap();
        let probe = |length| probe_path(&a.netns, underlay.local, peer, length, PATIENCE).unwrap();
        assert_eq!(probe(1500), Passage::Arrived, "{peer}");
        // This node's own device.
        assert_eq!(probe(1501), Passage::TooBig, "{peer}");
        r.ip("link set right mtu 1400");
        assert_eq!(probe(1500), Passage::TooBig, "{peer}");
        assert_eq!(netlink.underlay(peer).await.unwrap().mtu, 1400);
        assert_eq!(probe(1400), Passage::Arrived, "{peer}");
        r.ip("link set right mtu 1500");
    }
}

#[tokio::test]
async fn a_path_that_swallows_packets_is_told_as_silence() {
    require_root!();
    let (a, r, _b) = routed();
    r.ip("route add blackhole 10.9.2.2/32");
    let (local, peer) = ("10.9.1.2".parse().unwrap(), "10.9.2.2".parse().unwrap());
    let began = std::time::Instant::now();
    let passage = probe_path(&a.netns, local, peer, 1400, Duration::from_millis(300)).unwrap();
    assert_eq!(passage, Passage::Silence);
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_device_tells_its_rate_or_none() {
    require_root!();
    let (a, _b) = pair("eth0", "eth0", 1500);
    assert_eq!(link_rate(&a.netns, "eth0").unwrap(), Some(10_000_000_000));
    assert_eq!(link_rate(&a.netns, "lo").unwrap(), None);
    assert!(link_rate(&a.netns, "nobody").unwrap_err().already_gone());
}
