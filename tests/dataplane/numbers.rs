//! The account of the numbers in the outer headers, when several CPUs receive at once.

use std::thread;

use crate::lab::{Lab, ROOMY, V4, V6};
use crate::netns::wait_until;
use crate::require::require;
use crate::traffic::Sender;

const EACH: u32 = 40_000;

#[test]
fn the_numbers_account_is_exact_when_cpus_receive_at_once() {
    require!("the_numbers_account_is_exact_when_cpus_receive_at_once");
    let lab = Lab::new(ROOMY);
    let destination = lab.arm_destination(&lab.destination_spec());
    let source = lab.arm_source(&lab.source_spec());
    source.flip().unwrap();
    for address in [V4, V6] {
        // A sender's own CPU does all of it, up to the destination's programs. Nobody reads the tap there: what it
        // drops has been counted.
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| Sender::new(&lab.client, address).send(EACH, 100));
            }
        });
    }
    let counters = || (source.counters().unwrap(), destination.counters().unwrap());
    wait_until("all are redirected", || {
        counters().0.s3.packets >= 8 * u64::from(EACH)
    });
    wait_until("all arrive", || {
        let (s, d) = counters();
        d.d1.packets == s.s3.packets
    });
    let (s, d) = counters();
    let (v4, v6) = (d.sequence_v4, d.sequence_v6);
    assert_eq!(v4.seen + v6.seen, s.s3.packets, "{v4:?} {v6:?}");
    assert_eq!((v4.missing, v6.missing), (0, 0), "{v4:?} {v6:?}");
    lab.disarm(source, destination);
}
