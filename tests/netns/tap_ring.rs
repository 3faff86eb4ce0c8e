//! What waits unread in a tap's ring, read through duplicates of another process's descriptors.

use katamaran::discover;
use katamaran::net::packet::{FrameInjector, VnetHeader};
use katamaran::net::tap::TapCounters;
use katamaran::net::tapfd::TapQueues;

use crate::support::{
    Net, TAP, Tap, VM, VM_MAC, number, require_root, send_numbered, udp_frame, wait_until,
};

fn duplicate(pid: i32) -> TapQueues {
    let found = discover::tap(pid, None).unwrap();
    TapQueues::duplicate_fds(pid, &found.name, &found.descriptors).unwrap()
}

#[test]
fn unread_packets_are_read_out_exactly_and_in_order() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    let mut counters = TapCounters::open(&net.netns, tap.index).unwrap();
    let before = counters.read().unwrap();
    let holder = tap.hand_over();
    let queues = duplicate(holder.pid());
    assert!(queues.empty().unwrap().is_some());

    send_numbered(&net, 0..500);
    assert!(queues.empty().unwrap().is_none());
    assert_eq!(counters.read().unwrap().in_ring(&before, 0, 500), Some(500));

    let frames = queues.read_unread(usize::MAX).unwrap();
    let numbers: Vec<u32> = frames.iter().map(|frame| number(&frame.frame)).collect();
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    assert!(queues.empty().unwrap().is_some());
    let after = counters.read().unwrap();
    assert_eq!(after.in_ring(&before, 0, 500), Some(0));
    assert_eq!(after.dropped, before.dropped);
    assert!(
        queues.read_unread(usize::MAX).unwrap().is_empty(),
        "nothing is read twice"
    );
}

#[test]
fn a_limit_leaves_the_rest_in_the_ring() {
    require_root!();
    let net = Net::new();
    let holder = Tap::new(&net).hand_over();
    let queues = duplicate(holder.pid());
    send_numbered(&net, 0..10);
    assert_eq!(queues.read_unread(4).unwrap().len(), 4);
    assert_eq!(number(&queues.read_unread(9).unwrap()[0].frame), 4);
}

#[test]
fn the_ring_outlives_its_process_while_a_duplicate_is_open() {
    require_root!();
    let net = Net::new();
    let holder = Tap::new(&net).hand_over();
    let queues = duplicate(holder.pid());
    send_numbered(&net, 0..20);
    drop(holder);
    assert_eq!(queues.read_unread(usize::MAX).unwrap().len(), 20);
    drop(queues);
    let gone = || {
        net.netns
            .run(|| nix::net::if_::if_nametoindex(TAP))
            .unwrap()
            .is_err()
    };
    wait_until("the tap ends: no descriptor was leaked", gone);
}

#[test]
fn headers_of_ten_bytes_and_of_twelve_are_both_understood() {
    require_root!();
    for header in [10, 12] {
        let net = Net::new();
        let holder = Tap::with(&net, 1, header).hand_over();
        let queues = duplicate(holder.pid());
        assert_eq!(
            queues.vnet_header_size().unwrap(),
            usize::try_from(header).unwrap()
        );
        send_numbered(&net, 7..8);
        let frames = queues.read_unread(usize::MAX).unwrap();
        assert_eq!(frames[0].frame[..6], VM_MAC.0);
        assert_eq!(number(&frames[0].frame), 7);
    }
}

/// A VM that arrives brings a driver that is up. What waits in the ring is read with another header then.
#[test]
fn a_header_that_gets_longer_while_the_ring_is_held_costs_no_frame() {
    require_root!();
    let net = Net::new();
    let tap = Tap::with(&net, 1, 10);
    let qemus = tap.files[0].try_clone().unwrap();
    let holder = tap.hand_over();
    let queues = duplicate(holder.pid());
    send_numbered(&net, 7..9);
    Tap::set_header(&qemus, 12);
    let frames = queues.read_unread(usize::MAX).unwrap();
    let numbers: Vec<u32> = frames.iter().map(|f| number(&f.frame)).collect();
    assert_eq!(numbers, [7, 8]);
    assert_eq!(frames[0].frame[..6], VM_MAC.0);
}

#[test]
fn all_queues_of_a_tap_are_read() {
    require_root!();
    let net = Net::new();
    let tap = Tap::with(&net, 2, 12);
    let holder = tap.hand_over();
    let queues = duplicate(holder.pid());
    assert_eq!(queues.queues(), 2);
    // Each socket has a port of its own, so the flows spread over both queues.
    for n in 0..64 {
        send_numbered(&net, n..n + 1);
    }
    let mut numbers: Vec<u32> = queues
        .read_unread(usize::MAX)
        .unwrap()
        .iter()
        .map(|f| number(&f.frame))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..64).collect::<Vec<_>>());
}

#[test]
fn a_descriptor_of_another_file_is_refused() {
    require_root!();
    let net = Net::new();
    let holder = Tap::new(&net).hand_over();
    let not_a_tap = TapQueues::duplicate_fds(holder.pid(), TAP, &[2]).unwrap_err();
    assert!(not_a_tap.errno().is_some(), "{not_a_tap:?}");
    assert!(TapQueues::duplicate_fds(holder.pid(), "tap9", &[0]).is_err());
    assert!(TapQueues::duplicate_fds(holder.pid(), TAP, &[999]).is_err());
    let gone = TapQueues::duplicate_fds(i32::MAX, TAP, &[0]).unwrap_err();
    assert!(gone.errno().is_some(), "{gone:?}");
}

#[test]
fn a_frame_comes_out_with_the_header_that_describes_it() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    tap.offload();
    let index = tap.index;
    let holder = tap.hand_over();
    let queues = duplicate(holder.pid());
    let frame = udp_frame((VM_MAC, VM), (VM_MAC, VM), 9, &[0; 100]);
    let partial = VnetHeader([1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    FrameInjector::open(&net.netns, index)
        .unwrap()
        .inject(partial, &frame)
        .unwrap();
    let read = queues.read_unread(usize::MAX).unwrap();
    assert_eq!(
        read[0].vnet_header.0[0], 1,
        "the checksum is still to be finished"
    );
    assert_eq!(read[0].vnet_header.0[6..], partial.0[6..]);
}
