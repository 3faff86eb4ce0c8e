//! When V's two copies ran, by what the QEMUs themselves say.

use crate::lab::Node;
use crate::run::timeline::Timeline;

/// From when to when a copy ran, in ns since the epoch.
type Interval = (u64, u64);

/// How long both copies of V ran at the same time, in ns. V runs on A at the beginning; a QEMU that is killed runs nothing
/// from then on.
pub(super) fn both_ran(timeline: &Timeline, killed: Option<(Node, u64)>) -> u64 {
    let [a, b] = [Node::A, Node::B].map(|node| {
        let end = match killed {
            Some((dead, at_ns)) if dead == node => at_ns,
            _ => u64::MAX,
        };
        intervals(timeline, node, end)
    });
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| overlap(*a, *b)).max().unwrap_or(0)
}

/// Whether V ever ran on B.
pub(super) fn ran_on_b(timeline: &Timeline) -> bool {
    timeline.resume_ns.is_some()
}

fn intervals(timeline: &Timeline, node: Node, end: u64) -> Vec<Interval> {
    let mut since = (node == Node::A).then_some(0);
    let mut intervals = Vec::new();
    for (_, event) in timeline.events.iter().filter(|(at, _)| *at == node) {
        match (event.name.as_str(), since) {
            ("RESUME", None) => since = Some(event.at_ns),
            ("STOP", Some(began)) => {
                since = None;
                intervals.push((began, event.at_ns.min(end)));
            }
            _ => {}
        }
    }
    intervals.extend(since.map(|began| (began, end)));
    intervals
}

fn overlap(a: Interval, b: Interval) -> u64 {
    a.1.min(b.1).saturating_sub(a.0.max(b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Event;

    fn timeline(events: &[(Node, &str, u64)]) -> Timeline {
        let mut timeline = Timeline::default();
        for (node, name, at_ns) in events {
            let event = Event {
                name: (*name).to_owned(),
                at_ns: *at_ns,
                data: serde_json::Value::Null,
            };
            timeline.note(*node, event);
        }
        timeline
    }

    #[test]
    fn a_vm_that_moves_runs_once_at_any_time() {
        let moved = timeline(&[(Node::A, "STOP", 10), (Node::B, "RESUME", 12)]);
        assert_eq!(both_ran(&moved, None), 0);
        let back = timeline(&[(Node::A, "STOP", 10), (Node::A, "RESUME", 20)]);
        assert_eq!(both_ran(&back, None), 0);
    }

    #[test]
    fn two_copies_that_run_are_seen() {
        let both = timeline(&[
            (Node::A, "STOP", 10),
            (Node::B, "RESUME", 12),
            (Node::A, "RESUME", 20),
            (Node::B, "STOP", 25),
        ]);
        assert_eq!(both_ran(&both, None), 5);
        let early = timeline(&[(Node::B, "RESUME", 9), (Node::A, "STOP", 10)]);
        assert_eq!(both_ran(&early, None), 1);
    }

    #[test]
    fn a_qemu_that_was_killed_runs_nothing() {
        let events = timeline(&[(Node::B, "RESUME", 12)]);
        assert_eq!(both_ran(&events, Some((Node::A, 11))), 0);
        assert!(both_ran(&events, None) > 0);
    }
}
