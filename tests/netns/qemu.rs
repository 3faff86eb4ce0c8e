//! A real QEMU that does not run its VM: what is found through it, and what it takes from its tap.

use std::process::{Command, Stdio};

use katamaran::discover;
use katamaran::net::NetNs;
use katamaran::net::link::LinkInfo;
use katamaran::net::packet::{FrameInjector, is_bait};
use katamaran::net::tap::TapCounters;
use katamaran::net::tapfd::TapQueues;
use katamaran::session_id::SessionId;

use crate::support::{
    Holder, NODE, Net, TAP, VM, VM_MAC, number, require_root, send_numbered, skip_without,
    wait_until,
};

const QEMU: &str = "qemu-system-x86_64";

/// A QEMU that made its own tap and has not started its VM.
async fn stopped_qemu(net: &Net) -> (Holder, LinkInfo) {
    let nic = format!("virtio-net-pci,netdev=n,mac={VM_MAC},romfile=");
    let child = net
        .netns
        .run(|| {
            Command::new(QEMU)
                .args([
                    "-S",
                    "-nodefaults",
                    "-display",
                    "none",
                    "-accel",
                    "tcg",
                    "-m",
                    "64",
                ])
                .args([
                    "-netdev",
                    "tap,id=n,ifname=tap0,script=no,downscript=no,vhost=off",
                ])
                .args(["-device", &nic])
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        })
        .unwrap();
    let holder = Holder::of(child);
    wait_until("QEMU opens its tap", || {
        discover::tap(holder.pid(), None).is_ok()
    });
    net.ip(&format!("link set {TAP} addrgenmode none"));
    net.ip(&format!("addr add {NODE}/24 dev {TAP}"));
    net.ip(&format!("link set {TAP} up"));
    net.ip(&format!("neigh add {VM} lladdr {VM_MAC} dev {TAP}"));
    let link = net.netlink().link_by_name(TAP).await.unwrap();
    assert!(link.carrier);
    (holder, link)
}

fn duplicate(holder: &Holder) -> TapQueues {
    let found = discover::tap(holder.pid(), None).unwrap();
    TapQueues::duplicate_fds(holder.pid(), &found.name, &found.descriptors).unwrap()
}

#[tokio::test]
async fn a_qemu_is_found_out_through_its_process() {
    require_root!();
    if skip_without(QEMU) {
        return;
    }
    let net = Net::new();
    let (holder, link) = stopped_qemu(&net).await;
    let found = discover::tap(holder.pid(), None).unwrap();
    assert_eq!((found.name.as_str(), found.vhost), (TAP, false));
    assert_eq!(found.netns, net.netns);
    assert_eq!(NetNs::of_pid(holder.pid()).unwrap(), net.netns);
    assert_eq!(found.descriptors.len(), 1);
    assert!(
        duplicate(&holder).vnet_header_size().unwrap() >= 10,
        "virtio-net turns headers on"
    );
    assert_eq!(
        link.index,
        net.netlink().link_by_name(TAP).await.unwrap().index
    );
}

#[tokio::test]
async fn a_qemu_that_does_not_run_takes_the_bait_and_no_packet_of_the_vm() {
    require_root!();
    if skip_without(QEMU) {
        return;
    }
    let net = Net::new();
    let (holder, link) = stopped_qemu(&net).await;
    let mut counters = TapCounters::open(&net.netns, link.index).unwrap();
    let before = counters.read().unwrap();
    assert_eq!((before.read, before.dropped), (0, 0));

    let mut injector = FrameInjector::open(&net.netns, link.index).unwrap();
    injector.bait(VM_MAC, SessionId(7)).unwrap();
    wait_until("QEMU takes the bait", || counters.read().unwrap().read == 1);

    send_numbered(&net, 0..20);
    let queues = duplicate(&holder);
    let frames = queues.read_unread(usize::MAX).unwrap();
    let numbers: Vec<_> = frames.iter().map(|frame| number(&frame.frame)).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    assert!(!frames.iter().any(|frame| is_bait(&frame.frame)));
    let after = counters.read().unwrap();
    assert_eq!(after.in_ring(&before, 0, 20 + injector.injected()), Some(0));
}

#[tokio::test]
async fn without_a_bait_a_qemu_that_does_not_run_swallows_a_packet_of_the_vm() {
    require_root!();
    if skip_without(QEMU) {
        return;
    }
    let net = Net::new();
    let (holder, link) = stopped_qemu(&net).await;
    let mut counters = TapCounters::open(&net.netns, link.index).unwrap();
    send_numbered(&net, 0..20);
    wait_until("QEMU takes one", || counters.read().unwrap().read == 1);
    let frames = duplicate(&holder).read_unread(usize::MAX).unwrap();
    let numbers: Vec<_> = frames.iter().map(|frame| number(&frame.frame)).collect();
    assert_eq!(numbers, (1..20).collect::<Vec<_>>());
}
