//! Counting, flipping, and what the ledger says afterwards.

use katamaran::ebpf::{DestinationCounters, SourceCounters};

use crate::account::Account;
use crate::lab::{Lab, ROOMY, V4, V6};
use crate::netns::wait_until;
use crate::require::require;
use crate::traffic::{Receiver, Sender};

#[test]
fn count_mode_counts_exactly_and_changes_nothing() {
    require!("count_mode_counts_exactly_and_changes_nothing");
    let lab = Lab::new(ROOMY);
    let _pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, V4);
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);

    let source = lab.arm_source(&lab.source_spec());
    let mut taken = Account::new(&lab.a, &source);
    sender.send(500, 100);
    wait_until("all arrive", || receiver.received() == 501);
    receiver.assert_all_once(501);

    let counters = source.counters().unwrap();
    assert_eq!((counters.s1.packets, counters.s1.skbs), (500, 500));
    assert_eq!(counters.s1.bytes, 500 * (20 + 8 + 100));
    assert_eq!(counters.s2, counters.s1);
    assert_eq!(counters.s3.packets, 0);
    assert!(counters.last_passed_ns.is_some());
    taken.drain();
    // The tracepoint is there before the hook is: what passed in between was only offered.
    let unseen = |c: SourceCounters| c.offered.unwrap().vm.skbs - c.s2.skbs;
    assert!(unseen(counters) <= 3, "{counters:#?}");
    assert_eq!(source.drops().unwrap().unwrap(), []);
    lab.a.netns.run(|| source.remove()).unwrap();
}

#[test]
fn a_flip_moves_v4_traffic_and_the_ledger_balances() {
    require!("a_flip_moves_v4_traffic_and_the_ledger_balances");
    cut_over(&Lab::new(ROOMY), V4);
}

#[test]
fn a_flip_moves_v6_traffic_and_the_ledger_balances() {
    require!("a_flip_moves_v6_traffic_and_the_ledger_balances");
    cut_over(&Lab::new(ROOMY), V6);
}

/// Numbered datagrams all the way through a cutover: none is lost, none comes twice.
pub(crate) fn cut_over(lab: &Lab, address: &str) {
    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, address);
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);

    let destination = lab.arm_destination(&lab.destination_spec());
    let source = lab.arm_source(&lab.source_spec());
    let mut taken = Account::new(&lab.a, &source);
    sender.send(200, 100);
    let flip = source.flip().unwrap();
    assert!(flip.before_ns <= flip.after_ns);
    sender.send(300, 700);
    taken.drain();
    drop(pump);
    sender.send(100, 100);
    // V now runs behind B; what came meanwhile waits in B's tap.
    let _pump = lab.pump(&lab.b);
    wait_until("all arrive", || receiver.received() == 601);
    receiver.assert_all_once(601);

    let s = source.counters().unwrap();
    let d = destination.counters().unwrap();
    assert_eq!(s.s1.packets, 600);
    assert_balanced(&s, &d);
    assert!(s.first_redirected_ns.unwrap() >= flip.before_ns);
    assert!(s.last_passed_ns.unwrap() <= s.first_redirected_ns.unwrap());
    assert!(source.last_redirect_ns().unwrap() >= s.first_redirected_ns);
    assert_eq!(source.drops().unwrap().unwrap(), []);
    assert_eq!(destination.drops().unwrap().unwrap(), []);
    let sequence = if address == V4 {
        d.sequence_v4
    } else {
        d.sequence_v6
    };
    assert_eq!(
        (sequence.seen, sequence.missing, sequence.late),
        (s.s3.packets, 0, 0)
    );
    lab.disarm(source, destination);
}

#[track_caller]
pub(crate) fn assert_balanced(s: &SourceCounters, d: &DestinationCounters) {
    assert_eq!(
        s.s1.packets,
        s.s2.packets + s.s3.packets,
        "S1 = S2 + S3: {s:#?}"
    );
    assert_eq!(s.s1.bytes, s.s2.bytes + s.s3.bytes, "S1 = S2 + S3: {s:#?}");
    assert_eq!(
        (d.d1.packets, d.d1.bytes),
        (s.s3.packets, s.s3.bytes),
        "D1 = S3: {s:#?} {d:#?}"
    );
    assert_eq!(
        d.digest_d1, s.digest_s3,
        "digests of D1 and S3: {s:#?} {d:#?}"
    );
    assert_eq!(
        d.d3.packets,
        d.d1.packets + d.d2.packets,
        "D3 = D1 + D2: {d:#?}"
    );
    assert_eq!(d.d3.bytes, d.d1.bytes + d.d2.bytes, "D3 = D1 + D2: {d:#?}");
    assert_eq!(
        (
            s.encap_failed.packets,
            s.too_big.packets,
            d.decap_failed.packets
        ),
        (0, 0, 0)
    );
}
