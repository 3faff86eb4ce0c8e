//! V's neighbour entry on the source must not die while V is away.

use crate::account::Account;
use crate::lab::{Lab, ROOMY, V4, V6};
use crate::netns::wait_until;
use crate::require::require;
use crate::traffic::{Receiver, Sender};

#[test]
fn neighbour_requests_for_v_are_answered_while_it_is_away() {
    require!("neighbour_requests_for_v_are_answered_while_it_is_away");
    for address in [V4, V6] {
        asked_while_away(address);
    }
}

fn asked_while_away(address: &str) {
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
    taken.drain();
    // From here on nobody reads the source's tap: who answers can't be V.
    drop(pump);
    let _pump = lab.pump(&lab.b);
    lab.a
        .netns
        .ip(&format!("neigh flush dev vtap to {address}"));
    sender.send(20, 100);
    wait_until("all arrive", || receiver.received() == 21);
    receiver.assert_all_once(21);
    let s = source.counters().unwrap();
    assert!(s.neighbours_answered.packets >= 1, "{s:#?}");
    let entry = lab.a.netns.ip(&format!("neigh show {address} dev vtap"));
    assert!(
        entry.contains("02:00:00:00:00:05") && entry.contains("REACHABLE"),
        "{entry}"
    );
    lab.disarm(source, destination);
}
