//! Redirecting through a tunnel device, and super-packets of datagrams.

use katamaran::ebpf::{AttachMode, AttachPreference, Encap, Ingress};

use crate::account::Account;
use crate::cutover::assert_balanced;
use crate::lab::{Lab, ROOMY, V4, V6};
use crate::netns::wait_until;
use crate::require::require;
use crate::traffic::{Receiver, Sender};

#[test]
fn frames_travel_through_a_vxlan_device() {
    require!("frames_travel_through_a_vxlan_device");
    for address in [V4, V6] {
        through_device(address);
    }
}

fn through_device(address: &str) {
    let lab = Lab::new(ROOMY);
    let (at_source, at_destination) = lab.vxlan();
    let mut source_spec = lab.source_spec();
    source_spec.encap = Encap::Device { ifindex: at_source };
    let mut destination_spec = lab.destination_spec();
    destination_spec.ingress = vec![Ingress::Frames {
        ifindex: at_destination,
    }];

    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, address);
    let destination = lab.arm_destination(&destination_spec);
    let source = lab.arm_source(&source_spec);
    let mut taken = Account::new(&lab.a, &source);
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    source.flip().unwrap();
    sender.send(1, 100);
    // The tunnel's own neighbour entries are found with the first packet.
    wait_until("the first comes through", || {
        destination.counters().unwrap().d1.packets == 1
    });
    sender.send(300, 1000);
    taken.drain();
    drop(pump);
    let _pump = lab.pump(&lab.b);
    wait_until("all arrive", || receiver.received() == 302);
    receiver.assert_all_once(302);
    let (s, d) = (source.counters().unwrap(), destination.counters().unwrap());
    assert_balanced(&s, &d);
    assert_eq!(
        (s.s3.packets, d.sequence_v4.seen),
        (301, 0),
        "frames are not numbered"
    );
    lab.disarm(source, destination);
}

#[test]
fn super_packets_of_datagrams_arrive_as_the_datagrams_they_were() {
    require!("super_packets_of_datagrams_arrive_as_the_datagrams_they_were");
    for address in [V4, V6] {
        super_datagrams(address);
    }
}

fn super_datagrams(address: &str) {
    const EACH: u32 = 1000;
    let lab = Lab::new(ROOMY);
    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, address);
    let destination = lab.arm_destination(&lab.destination_spec());
    let source = lab.arm_source(&lab.source_spec());
    let mut taken = Account::new(&lab.a, &source);
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    source.flip().unwrap();
    // 10 super-packets of 40 numbered datagrams; the last of each is short.
    for _ in 0..10 {
        sender.send_super(40, EACH as usize, 600);
    }
    taken.drain();
    drop(pump);
    let _pump = lab.pump(&lab.b);
    wait_until("all arrive", || receiver.received() == 401);
    receiver.assert_all_once(401);
    let (s, d) = (source.counters().unwrap(), destination.counters().unwrap());
    assert_balanced(&s, &d);
    assert_eq!(s.s3.packets, 400);
    assert!(s.s3.skbs < 400, "no super-packets: {s:#?}");
    lab.disarm(source, destination);
}

#[test]
fn without_tcx_the_programs_attach_to_clsact_which_stays_for_the_sake_of_the_queue() {
    require!("without_tcx_the_programs_attach_to_clsact_which_stays_for_the_sake_of_the_queue");
    let lab = Lab::new(ROOMY);
    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, V4);
    let (mut source_spec, mut destination_spec) = (lab.source_spec(), lab.destination_spec());
    source_spec.attach = AttachPreference::Clsact;
    destination_spec.attach = AttachPreference::Clsact;
    let destination = lab.arm_destination(&destination_spec);
    let source = lab.arm_source(&source_spec);
    assert_eq!(source.attach_mode(), AttachMode::Clsact);
    let mut taken = Account::new(&lab.a, &source);
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    source.flip().unwrap();
    sender.send(100, 100);
    taken.drain();
    drop(pump);
    let _pump = lab.pump(&lab.b);
    wait_until("all arrive", || receiver.received() == 101);
    receiver.assert_all_once(101);
    assert_balanced(
        &source.counters().unwrap(),
        &destination.counters().unwrap(),
    );
    assert!(source.has_reset_a_queue() && destination.has_reset_the_uplink());
    lab.disarm(source, destination);
    for (netns, device) in [
        (&lab.a.netns, "vtap"),
        (&lab.b.netns, "vtap"),
        (&lab.b.netns, "up0"),
    ] {
        let qdiscs = netns.command("tc", &format!("qdisc show dev {device}"));
        assert!(qdiscs.contains("clsact"), "{device}: {qdiscs}");
        for direction in ["ingress", "egress"] {
            let filters = netns.command("tc", &format!("filter show dev {device} {direction}"));
            assert_eq!(filters, "", "{device} {direction}");
        }
    }
    // The next migration finds it there, and resets nothing.
    let source = lab.arm_source(&source_spec);
    assert!(!source.has_reset_a_queue());
    lab.a.netns.run(|| source.remove()).unwrap();
}
