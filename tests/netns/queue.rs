//! A tap's ring made longer and given its old length back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use katamaran::net::tap::{RaisedQueue, RingEmpty, TapCounters};

use crate::support::{NODE, Net, TAP, Tap, VM, pair, require_root, send_numbered};

async fn txqlen(net: &Net) -> u32 {
    net.netlink().link_by_name(TAP).await.unwrap().txqlen
}

#[tokio::test]
async fn a_raised_ring_holds_what_the_default_would_drop() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let mut counters = TapCounters::open(&net.netns, tap.index).unwrap();
    send_numbered(&net, 0..1500);
    assert_eq!(
        counters.read().unwrap().dropped,
        500,
        "the default ring holds 1000"
    );
    tap.read_all();

    let raised = RaisedQueue::raise(&net.netlink(), tap.index, 20_000)
        .await
        .unwrap();
    assert_eq!((raised.previous(), raised.capacity()), (1000, 20_000));
    let before = counters.read().unwrap();
    send_numbered(&net, 0..15_000);
    let now = counters.read().unwrap();
    assert_eq!(now.dropped, before.dropped);
    assert_eq!(now.in_ring(&before, 0, 15_000), Some(15_000));
    assert_eq!(tap.read_all().len(), 15_000);
    let in_ring = counters
        .read()
        .unwrap()
        .in_ring(&before, 0, 15_000)
        .unwrap();
    raised
        .restore(RingEmpty::by_count(in_ring).unwrap())
        .await
        .unwrap();
    assert_eq!(txqlen(&net).await, 1000);
}

#[tokio::test]
async fn raising_keeps_what_the_ring_holds() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    send_numbered(&net, 0..700);
    let raised = RaisedQueue::raise(&net.netlink(), tap.index, 5000)
        .await
        .unwrap();
    assert_eq!(tap.read_all().len(), 700);
    raised.keep();
    assert_eq!(txqlen(&net).await, 5000);
}

#[tokio::test]
async fn shrinking_destroys_what_does_not_fit_which_is_why_restore_wants_a_proof() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    send_numbered(&net, 0..700);
    net.netlink().set_txqlen(tap.index, 100).await.unwrap();
    assert_eq!(tap.read_all().len(), 100);
}

#[tokio::test]
async fn a_longer_ring_is_left_alone_and_so_is_a_length_that_someone_else_set() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    net.ip(&format!("link set {TAP} txqueuelen 9000"));
    let raised = RaisedQueue::raise(&net.netlink(), tap.index, 5000)
        .await
        .unwrap();
    assert_eq!(raised.capacity(), 9000);
    raised
        .restore(RingEmpty::by_count(0).unwrap())
        .await
        .unwrap();
    assert_eq!(txqlen(&net).await, 9000);

    let raised = RaisedQueue::raise(&net.netlink(), tap.index, 10_000)
        .await
        .unwrap();
    net.ip(&format!("link set {TAP} txqueuelen 11000"));
    raised
        .restore(RingEmpty::by_count(0).unwrap())
        .await
        .unwrap();
    assert_eq!(txqlen(&net).await, 11_000);
}

#[tokio::test]
async fn only_a_taps_ring_is_raised_and_a_tap_that_ended_needs_no_restoring() {
    require_root!();
    let (a, _b) = pair("left", "right", 1500);
    let left = a.netlink().link_by_name("left").await.unwrap().index;
    assert!(RaisedQueue::raise(&a.netlink(), left, 5000).await.is_err());

    let net = Net::new();
    let tap = Tap::new(&net);
    let raised = RaisedQueue::raise(&net.netlink(), tap.index, 5000)
        .await
        .unwrap();
    drop(tap);
    raised
        .restore(RingEmpty::by_count(0).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_ring_is_raised_to_what_the_kernel_allows_at_most() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let raised = RaisedQueue::raise(&net.netlink(), tap.index, u32::MAX)
        .await
        .unwrap();
    assert!(raised.capacity() >= 16_384, "{raised:?}");
    assert_eq!(txqlen(&net).await, raised.capacity());
    println!("the longest ring here: {}", raised.capacity());
    send_numbered(&net, 0..16_384);
    assert_eq!(tap.read_all().len(), 16_384);
    raised.keep();
}

/// Packets that a thread sends while `disturb` runs; how many of them were not there to be read.
async fn lost_during(tap: &mut Tap, net: &Net, disturb: impl AsyncFnOnce()) -> usize {
    const RATE: Duration = Duration::from_micros(20);
    let raised = RaisedQueue::raise(&net.netlink(), tap.index, u32::MAX)
        .await
        .unwrap();
    let most = raised.capacity() - 100;
    raised.keep();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let socket = net.udp(&format!("{NODE}:0"));
    let (started, running) = tokio::sync::oneshot::channel();
    let sender = std::thread::spawn(move || {
        started.send(()).unwrap();
        let mut sent = 0;
        let mut next = Instant::now();
        for _ in 0..most {
            if stopping.load(Ordering::Relaxed) {
                break;
            }
            sent += usize::from(socket.send_to(b"x", (VM, 5000)).is_ok());
            next += RATE;
            while Instant::now() < next {
                std::hint::spin_loop();
            }
        }
        sent
    });
    running.await.unwrap();
    disturb().await;
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap() - tap.read_all().len()
}

#[tokio::test]
async fn resizing_a_busy_ring_loses_packets_which_is_why_it_can_be_kept() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let (netlink, index) = (net.netlink(), tap.index);
    let lost = lost_during(&mut tap, &net, async || {
        let long = netlink.link_by_index(index).await.unwrap().txqlen;
        for n in 1..10 {
            netlink.set_txqlen(index, long - n).await.unwrap();
        }
    })
    .await;
    println!("lost in 9 resizes: {lost}");
    assert!(
        lost > 0,
        "the kernel got better: a busy ring could be restored"
    );
}

#[tokio::test]
async fn reading_counters_and_links_of_a_busy_tap_loses_nothing() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let mut counters = TapCounters::open(&net.netns, tap.index).unwrap();
    let (netlink, index) = (net.netlink(), tap.index);
    let lost = lost_during(&mut tap, &net, async || {
        for _ in 0..200 {
            counters.read().unwrap();
            netlink.link_by_index(index).await.unwrap();
            netlink.root_qdisc(index).await.unwrap();
        }
    })
    .await;
    assert_eq!(lost, 0);
}
