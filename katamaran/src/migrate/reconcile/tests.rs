//! Both halves with one number changed, and what is made of it.

use super::*;

fn count(packets: u64) -> Option<Count> {
    Some(Count {
        packets,
        bytes: packets * 100,
    })
}

fn balanced() -> (SourceLedger, DestinationLedger) {
    (
        SourceLedger {
            s1: count(1000),
            s2: count(900),
            s3: count(100),
            digest: Some(7),
            tap: Some(TapBalance::default()),
            encap_failed: Some(0),
            drops: Some(vec![]),
            stopped_unread: false,
            ring_unseen: false,
            queue_reset: false,
        },
        DestinationLedger {
            d1: count(100),
            d2: count(50),
            d3: count(150),
            d3_tunnel: count(100),
            digest: Some(7),
            numbers: None,
            tap: Some(TapBalance::default()),
            drops: Some(vec![]),
        },
    )
}

fn verdict(s: &SourceLedger, d: &DestinationLedger) -> Reconciled {
    reconcile(s, d, Recovered::default())
}

#[test]
fn a_balanced_ledger_is_proven() {
    let (s, d) = balanced();
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.lost, r.duplicated), (Verdict::Proven, 0, 0));
}

fn drops(hop: Hop, reason: &str, count: u64) -> Option<Vec<DropRecord>> {
    Some(vec![DropRecord {
        hop,
        reason: reason.into(),
        location: "__dev_queue_xmit".into(),
        count,
    }])
}

#[test]
fn a_loss_ahead_of_the_taps_hook_is_told_once_and_with_its_reason() {
    let (s, mut d) = balanced();
    d.d3_tunnel = count(93);
    // One of them had come directly.
    d.drops = drops(Hop::DestinationTap, "TC_EGRESS", 8);
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.lost), (Verdict::Violated, 8));
    assert_eq!(r.imbalances.len(), 1);
    assert_eq!(r.imbalances[0].hop, Hop::DestinationHost);
    assert!(r.imbalances[0].reasons[0].contains("TC_EGRESS"));
}

#[test]
fn a_loss_behind_the_taps_hook_is_told_once_and_with_its_reason() {
    let (s, mut d) = balanced();
    d.tap = Some(TapBalance {
        not_enqueued: 7,
        ..TapBalance::default()
    });
    d.drops = drops(Hop::DestinationTap, "TC_EGRESS", 7);
    let r = verdict(&s, &d);
    assert_eq!((r.lost, r.imbalances.len()), (7, 1));
    assert_eq!(r.imbalances[0].hop, Hop::DestinationTap);
    assert!(r.imbalances[0].reasons[0].contains("TC_EGRESS"));
}

#[test]
fn a_loss_in_the_tunnel_that_a_node_saw_is_told_once() {
    let (mut s, mut d) = balanced();
    (d.d1, d.d3_tunnel) = (count(95), count(95));
    s.drops = drops(Hop::Tunnel, "TC_EGRESS", 5);
    let r = verdict(&s, &d);
    assert_eq!((r.lost, r.imbalances.len()), (5, 1));
    assert_eq!(r.imbalances[0].hop, Hop::Tunnel);
}

#[test]
fn losses_at_several_hops_add_up() {
    let (mut s, mut d) = balanced();
    s.drops = drops(Hop::SourceHost, "NETFILTER_DROP", 2);
    s.tap = Some(TapBalance {
        dropped: 3,
        ..TapBalance::default()
    });
    (d.d1, d.d3_tunnel) = (count(96), count(96));
    d.tap = Some(TapBalance {
        dropped: 1,
        ..TapBalance::default()
    });
    let r = verdict(&s, &d);
    let lost: Vec<u64> = r.imbalances.iter().map(|i| i.lost).collect();
    assert_eq!((r.lost, lost), (10, vec![2, 3, 4, 1]));
}

#[test]
fn a_loss_and_a_duplicate_do_not_cancel_out() {
    let (s, mut d) = balanced();
    d.digest = Some(8);
    let r = verdict(&s, &d);
    assert_eq!(r.verdict, Verdict::Violated);
    assert!(r.imbalances[0].altered);
}

#[test]
fn duplicates_are_not_losses() {
    let (s, mut d) = balanced();
    d.d1 = count(103);
    d.d3_tunnel = count(103);
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.lost, r.duplicated), (Verdict::Violated, 0, 3));
}

#[test]
fn what_is_left_in_a_tap_is_lost_unless_it_was_recovered() {
    let (mut s, d) = balanced();
    s.tap = Some(TapBalance {
        unread: 12,
        ..TapBalance::default()
    });
    assert_eq!(verdict(&s, &d).lost, 12);
    s.tap = Some(TapBalance::default());
    let recovered = Recovered {
        from_source_tap: 11,
        swallowed: 1,
        into_destination_tap: 12,
        ..Recovered::default()
    };
    assert_eq!(reconcile(&s, &d, recovered).verdict, Verdict::Proven);
    let short = Recovered {
        beyond_recovery: 1,
        ..recovered
    };
    assert_eq!(reconcile(&s, &d, short).lost, 1);
}

#[test]
fn a_loss_in_the_tap_that_no_kernel_saw_is_placed_by_the_counters() {
    let (s, mut d) = balanced();
    d.tap = Some(TapBalance {
        unread: 2,
        dropped: 1,
        not_enqueued: 0,
    });
    let r = verdict(&s, &d);
    assert_eq!(r.imbalances[0].reasons, ["refused by the tap's ring (1)"]);
    assert_eq!((r.verdict, r.lost), (Verdict::Violated, 1));
}

#[test]
fn what_waits_in_the_tap_of_a_vm_that_runs_is_neither_lost_nor_proven() {
    let (s, mut d) = balanced();
    d.tap = Some(TapBalance {
        unread: 12,
        ..TapBalance::default()
    });
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.lost), (Verdict::Unproven, 0));
    assert!(r.unavailable[0].contains("12 packets still wait"), "{r:?}");
}

#[test]
fn what_a_tracepoint_may_have_missed_proves_nothing() {
    let (mut s, mut d) = balanced();
    let tap = Some(TapBalance {
        not_enqueued: 5,
        ..TapBalance::default()
    });
    d.tap = tap;
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.lost), (Verdict::Unproven, 0));
    assert!(r.unavailable[0].contains("D3'") && r.unavailable[0].contains("5 packets"));
    // What a kernel tells to have dropped is lost.
    d.drops = drops(Hop::DestinationTap, "QDISC_DROP", 3);
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.lost), (Verdict::Violated, 3));
    assert!(r.unavailable[0].contains("2 packets"));
    d = balanced().1;
    s.tap = tap;
    assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
}

#[test]
fn a_vm_that_stopped_with_packets_unread_is_never_proven() {
    let (mut s, d) = balanced();
    s.stopped_unread = true;
    assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
}

#[test]
fn a_ring_that_nobody_has_looked_into_proves_nothing() {
    let (mut s, d) = balanced();
    s.ring_unseen = true;
    assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
}

#[test]
fn a_hook_whose_attachment_may_have_dropped_packets_proves_nothing() {
    let (mut s, d) = balanced();
    s.queue_reset = true;
    assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
}

#[test]
fn a_drop_that_only_the_kernel_saw_is_a_violation() {
    let (mut s, d) = balanced();
    s.drops = Some(vec![DropRecord {
        hop: Hop::SourceHost,
        reason: "NETFILTER_DROP".into(),
        location: "nf_hook_slow".into(),
        count: 2,
    }]);
    assert_eq!(verdict(&s, &d).lost, 2);
}

#[test]
fn a_counter_that_was_not_read_is_never_a_zero() {
    let (s, mut d) = balanced();
    d.drops = None;
    let r = verdict(&s, &d);
    assert_eq!((r.verdict, r.dropped), (Verdict::Unproven, None));
    assert_eq!(r.unavailable, ["kernel drops on the destination"]);
    d.d1 = None;
    assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
}
