//! What was redirected is still there for a V that goes on at the source.

use katamaran::ebpf::{AttachPreference, LeftBehind, RetainedPacket, SourceDataplane};

use crate::lab::{Lab, ROOMY, V4, V6};
use crate::netns::wait_until;
use crate::require::require;
use crate::traffic::{Receiver, Sender};

fn all(source: &SourceDataplane) -> Vec<RetainedPacket> {
    std::iter::from_fn(|| source.next_retained()).collect()
}

/// Waits until the hook has redirected so many packets, and a late one would have come.
fn wait_until_redirected(source: &SourceDataplane, packets: u64) {
    wait_until("all are redirected", || {
        source.counters().unwrap().s3.packets == packets
    });
}

/// Puts packets into V's device, one frame after another. Returns how many there were.
fn give(lab: &Lab, packets: Vec<RetainedPacket>) -> usize {
    let frames = packets
        .into_iter()
        .map(|packet| packet.into_frames().unwrap());
    frames
        .flatten()
        .map(|frame| lab.give_to_guest(&frame))
        .count()
}

#[test]
fn what_is_redirected_is_retained_until_v_runs_elsewhere() {
    require!("what_is_redirected_is_retained_until_v_runs_elsewhere");
    for (address, size) in [(V4, 40), (V4, 100), (V6, 100), (V4, 400), (V6, 1300)] {
        let lab = Lab::new(ROOMY);
        let _pump = lab.pump(&lab.a);
        let receiver = Receiver::new(&lab.vm);
        let mut sender = Sender::new(&lab.client, address);
        let source = lab.arm_source(&lab.source_spec());
        sender.send(1, size);
        wait_until("V answers", || receiver.received() == 1);
        assert_eq!(all(&source), [], "nothing is redirected");

        source.flip().unwrap();
        sender.send(100, size);
        wait_until_redirected(&source, 100);
        source.unflip().unwrap();
        let packets = all(&source);
        assert_eq!(packets.len(), 100);
        assert_eq!(all(&source), [], "each once");
        assert_eq!(give(&lab, packets), 100);
        wait_until("V takes them all", || receiver.received() == 101);
        receiver.assert_all_once(101);

        // A flip begins with nothing.
        source.flip().unwrap();
        sender.send(3, size);
        wait_until_redirected(&source, 103);
        source.flip().unwrap();
        assert_eq!(all(&source), []);
        source.stop_retaining().unwrap();
        sender.send(3, size);
        wait_until_redirected(&source, 106);
        assert_eq!(all(&source), [], "V runs on D");
        assert_eq!(source.counters().unwrap().not_retained.packets, 0);
        lab.a.netns.run(|| source.remove()).unwrap();
    }
}

#[test]
fn super_packets_are_retained_as_the_datagrams_they_are() {
    require!("super_packets_are_retained_as_the_datagrams_they_are");
    for address in [V4, V6] {
        let lab = Lab::new(ROOMY);
        let _pump = lab.pump(&lab.a);
        let receiver = Receiver::new(&lab.vm);
        let mut sender = Sender::new(&lab.client, address);
        let source = lab.arm_source(&lab.source_spec());
        sender.send(1, 100);
        wait_until("V answers", || receiver.received() == 1);
        source.flip().unwrap();
        for _ in 0..10 {
            sender.send_super(40, 1000, 600);
        }
        wait_until_redirected(&source, 400);
        source.unflip().unwrap();
        let packets = all(&source);
        assert!(packets.iter().any(|packet| packet.gso_size == 1000));
        assert_eq!(give(&lab, packets), 400);
        wait_until("V takes them all", || receiver.received() == 401);
        receiver.assert_all_once(401);
        lab.a.netns.run(|| source.remove()).unwrap();
    }
}

#[test]
fn what_a_dead_process_had_retained_is_found() {
    require!("what_a_dead_process_had_retained_is_found");
    for attach in [AttachPreference::Auto, AttachPreference::Clsact] {
        let lab = Lab::new(ROOMY);
        let _pump = lab.pump(&lab.a);
        let receiver = Receiver::new(&lab.vm);
        let mut sender = Sender::new(&lab.client, V4);
        let mut spec = lab.source_spec();
        spec.attach = attach;
        let source = lab.arm_source(&spec);
        sender.send(1, 100);
        wait_until("V answers", || receiver.received() == 1);
        assert!(LeftBehind::find(lab.session).unwrap().is_none());
        source.flip().unwrap();
        sender.send(50, 100);
        wait_until_redirected(&source, 50);
        source.abandon();

        let mut left = LeftBehind::find(lab.session).unwrap().unwrap();
        let packets: Vec<RetainedPacket> = std::iter::from_fn(|| left.next_retained()).collect();
        assert_eq!(give(&lab, packets), 50);
        wait_until("V takes them all", || receiver.received() == 51);
        left.unflip().unwrap();
        sender.send(5, 100);
        wait_until("passed again", || receiver.received() == 56);
        receiver.assert_all_once(56);
        assert!(LeftBehind::find(lab.session).unwrap().is_none());
        let source = lab.arm_source(&spec);
        lab.a.netns.run(|| source.remove()).unwrap();
    }
}

/// A full ring costs the copy, not the packet.
#[test]
fn what_no_copy_can_be_kept_of_is_redirected_and_counted() {
    require!("what_no_copy_can_be_kept_of_is_redirected_and_counted");
    const SIZE: u32 = 1300;
    // Each takes a record of 2 KiB; the ring has 32 MiB.
    const SENT: u32 = 20_000;
    let lab = Lab::new(ROOMY);
    let _pump = lab.pump(&lab.a);
    let mut sender = Sender::new(&lab.client, V4);
    let source = lab.arm_source(&lab.source_spec());
    source.flip().unwrap();
    for _ in 0..SENT / 100 {
        sender.send(100, SIZE as usize);
    }
    wait_until_redirected(&source, u64::from(SENT));
    let retained = all(&source).len() as u64;
    let missed = source.counters().unwrap().not_retained.packets;
    assert!(retained > 15_000 && missed > 0, "{retained} {missed}");
    assert_eq!(retained + missed, u64::from(SENT));
    lab.a.netns.run(|| source.remove()).unwrap();
}
