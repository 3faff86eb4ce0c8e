//! What stays in the kernel, and for how long.

use std::collections::BTreeSet;

use aya::programs::loaded_programs;
use katamaran::ebpf::{AttachPreference, EbpfError, SourceDataplane, stale_sessions, sweep};

use crate::lab::{Lab, ROOMY, V4};
use crate::netns::{Netns, wait_until};
use crate::require::require;
use crate::traffic::{Receiver, Sender};

/// Ids of loaded programs with our names, on the whole machine.
fn our_programs() -> BTreeSet<u32> {
    loaded_programs()
        .flatten()
        .filter(|program| {
            program
                .name_as_str()
                .is_some_and(|name| name.starts_with("ktm_"))
        })
        .map(|program| program.id())
        .collect()
}

/// Ids of the programs at a device. (Other tests run meanwhile, and load theirs.)
fn programs_at(lab: &Lab, device: &str) -> BTreeSet<u32> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let by_link = lab
        .a
        .netns
        .run(|| SchedClassifier::query_tcx(device, TcAttachType::Egress));
    if let Ok((_, programs)) = by_link {
        return programs.iter().map(|program| program.id()).collect();
    }
    // A kernel without TCX: `... direct-action not_in_hw id 12 name ktm_source ...`
    let filters = lab
        .a
        .netns
        .command("tc", &format!("filter show dev {device} egress"));
    let words: Vec<&str> = filters.split_whitespace().collect();
    words
        .windows(2)
        .filter(|pair| pair[0] == "id")
        .map(|pair| pair[1].parse().unwrap())
        .collect()
}

#[test]
fn nothing_is_left_after_removal() {
    require!("nothing_is_left_after_removal");
    let lab = Lab::new(ROOMY);
    let source = lab.arm_source(&lab.source_spec());
    let loaded = programs_at(&lab, "vtap");
    assert_eq!(loaded.len(), 1);
    assert!(our_programs().is_superset(&loaded));
    let pins = lab.pins();
    assert_eq!(pins.len(), 3, "one hook, two tracepoints: {pins:?}");
    lab.a.netns.run(|| source.remove()).unwrap();
    assert_eq!(lab.pins(), BTreeSet::new());
    // A command that another test is about to execute holds copies of our descriptors until it does.
    wait_until("the hook is off", || programs_at(&lab, "vtap").is_empty());
    // The kernel frees programs a little later.
    wait_until("the programs are gone", || {
        our_programs().is_disjoint(&loaded)
    });
}

#[test]
fn a_live_session_is_refused_and_a_dead_one_taken_over() {
    require!("a_live_session_is_refused_and_a_dead_one_taken_over");
    for attach in [AttachPreference::Auto, AttachPreference::Clsact] {
        let lab = Lab::new(ROOMY);
        let _pump = lab.pump(&lab.a);
        let receiver = Receiver::new(&lab.vm);
        let mut sender = Sender::new(&lab.client, V4);
        let mut spec = lab.source_spec();
        spec.attach = attach;
        let source = lab.arm_source(&spec);
        let again = lab.a.netns.run(|| SourceDataplane::arm(&spec)).unwrap_err();
        assert!(matches!(again, EbpfError::SessionLive { session, .. } if session == lab.session));

        // As if the process had died: the programs stay and go on redirecting.
        sender.send(1, 100);
        wait_until("V answers", || receiver.received() == 1);
        source.flip().unwrap();
        source.abandon();
        let destination = lab.arm_destination(&lab.destination_spec());
        sender.send(5, 100);
        wait_until("still redirected", || {
            destination.counters().unwrap().d1.packets == 5
        });

        // The same session again takes over, in COUNT mode.
        let source = lab.arm_source(&spec);
        sender.send(5, 100);
        wait_until("passed again", || receiver.received() == 6);
        assert_eq!(
            source.counters().unwrap().s2.packets,
            5,
            "counted once: one program is left"
        );
        lab.disarm(source, destination);
    }
}

#[test]
fn a_sweep_removes_what_a_dead_process_left() {
    require!("a_sweep_removes_what_a_dead_process_left");
    let lab = Lab::new(ROOMY);
    let spec = lab.source_spec();
    let source = lab.arm_source(&spec);
    assert!(
        !stale_sessions().unwrap().contains(&lab.session),
        "it is alive"
    );
    source.abandon();
    assert!(stale_sessions().unwrap().contains(&lab.session));
    assert_eq!(lab.pins().len(), 3);
    let swept = lab
        .a
        .netns
        .run(|| sweep(|session| session == lab.session))
        .unwrap();
    assert_eq!(swept.len(), 1);
    assert!(swept[0].outcome.is_ok(), "{swept:?}");
    assert_eq!(lab.pins(), BTreeSet::new());
    wait_until("the hook is off", || programs_at(&lab, "vtap").is_empty());
}

#[test]
fn a_filter_is_swept_in_its_own_namespace_or_with_it() {
    require!("a_filter_is_swept_in_its_own_namespace_or_with_it");
    let mut lab = Lab::new(ROOMY);
    let mut spec = lab.source_spec();
    spec.attach = AttachPreference::Clsact;
    lab.arm_source(&spec).abandon();
    let session = lab.session;
    let sweep_from = |netns: &Netns| {
        let mut swept = netns.run(|| sweep(|found| found == session)).unwrap();
        assert_eq!(swept.len(), 1);
        swept.remove(0).outcome
    };
    let elsewhere = sweep_from(&lab.b.netns);
    assert!(
        matches!(elsewhere, Err(EbpfError::OtherNamespace { .. })),
        "{elsewhere:?}"
    );
    lab.a.netns = Netns::new("instead");
    sweep_from(&lab.b.netns).unwrap();
    assert_eq!(lab.pins(), BTreeSet::new());
}

#[test]
fn a_failed_arming_leaves_nothing() {
    require!("a_failed_arming_leaves_nothing");
    let lab = Lab::new(ROOMY);
    let mut spec = lab.source_spec();
    spec.hook_ifindex = 4_000_000;
    let error = lab.a.netns.run(|| SourceDataplane::arm(&spec)).unwrap_err();
    assert!(matches!(
        error,
        EbpfError::NoDevice {
            ifindex: 4_000_000,
            ..
        }
    ));
    let mut spec = lab.destination_spec();
    spec.ingress
        .push(katamaran::ebpf::Ingress::Frames { ifindex: 1 });
    let armed = lab
        .b
        .netns
        .run(|| katamaran::ebpf::DestinationDataplane::arm(&spec));
    assert!(matches!(armed.unwrap_err(), EbpfError::NotEthernet { name } if name == "lo"));
    assert_eq!(lab.pins(), BTreeSet::new());
}
