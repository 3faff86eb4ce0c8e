//! The copy ring: what a stopped QEMU swallowed can be given to V again.

use katamaran_common::layout::COPY_SLOTS;

use crate::lab::{Lab, ROOMY, V4};
use crate::netns::wait_until;
use crate::require::require;
use crate::traffic::{Receiver, Sender};

#[test]
fn the_copy_ring_keeps_the_last_frames_whole() {
    require!("the_copy_ring_keeps_the_last_frames_whole");
    let lab = Lab::new(ROOMY);
    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, V4);
    let source = lab.arm_source(&lab.source_spec());
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    assert_eq!(source.copied_frames().unwrap(), []);

    source.set_copy_ring(true).unwrap();
    drop(pump);
    let sent = COPY_SLOTS + 36;
    sender.send(sent, 100);
    wait_until("all are passed", || {
        source.counters().unwrap().s2.packets == u64::from(sent) + 1
    });
    source.set_copy_ring(false).unwrap();
    let frames = source.copied_frames().unwrap();
    let numbers: Vec<u64> = frames.iter().map(|frame| frame.number).collect();
    assert_eq!(
        numbers,
        (37..=u64::from(sent)).collect::<Vec<u64>>(),
        "the last of them"
    );
    for (frame, number) in frames.iter().zip(37u32..) {
        assert!(frame.is_whole());
        assert_eq!(frame.bytes.len(), 14 + 20 + 8 + 100);
        assert_eq!(
            frame.bytes[42..46],
            number.to_be_bytes(),
            "the payload's own number"
        );
    }

    // A copy is as good as the packet: V takes it, checksum and all.
    let last = frames.last().unwrap();
    lab.give_to_guest(&last.bytes);
    wait_until("V takes the copy", || receiver.received() == 2);
    assert!(receiver.has(sent));
    lab.a.netns.run(|| source.remove()).unwrap();
}
