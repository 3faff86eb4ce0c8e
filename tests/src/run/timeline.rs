//! When V stopped on one node and ran on the other, by what the QEMUs say.

use crate::lab::{Event, Node};

/// What the two QEMUs reported, and when.
#[derive(Debug, Default)]
pub struct Timeline {
    /// All events, in the order in which they were read.
    pub events: Vec<(Node, Event)>,
    /// V's last STOP on A, in ns since the epoch.
    pub stop_ns: Option<u64>,
    /// V's first RESUME on B, in ns since the epoch.
    pub resume_ns: Option<u64>,
    /// When the fabric's route was moved, in ns since the epoch.
    pub converged_ns: Option<u64>,
}

impl Timeline {
    /// STOP on A to RESUME on B, in ms.
    #[must_use]
    pub fn downtime_ms(&self) -> Option<f64> {
        Some(self.resume_ns?.saturating_sub(self.stop_ns?) as f64 / 1e6)
    }

    pub(super) fn note(&mut self, node: Node, event: Event) {
        match (node, event.name.as_str()) {
            (Node::A, "STOP") => self.stop_ns = Some(event.at_ns),
            (Node::B, "RESUME") => self.resume_ns = self.resume_ns.or(Some(event.at_ns)),
            _ => {}
        }
        self.events.push((node, event));
    }
}
