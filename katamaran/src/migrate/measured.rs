//! What a report says, in the words of the metrics.

use std::time::Duration;

use super::ledger::Verdict;
use super::report::{LedgerReport, Outcome, Report};
use crate::metrics::{self, Finished, HopCount};

/// What Prometheus is told at the end: the report's numbers, and nothing that it does not have.
#[must_use]
pub fn measured(report: &Report) -> Finished {
    let ledger = report.ledger.as_ref();
    Finished {
        downtime: report.downtime_ms.and_then(pause),
        blackout: report.blackout_ms.and_then(pause),
        verdict: (report.outcome == Outcome::Migrated).then(|| verdict(report.verdict)),
        hops: ledger.map(hops).unwrap_or_default(),
        lost: ledger.and_then(|ledger| known(ledger.lost, report.verdict)),
        duplicated: ledger.and_then(|ledger| known(ledger.duplicated, report.verdict)),
        kernel_drops: ledger.and_then(|ledger| ledger.x),
        ram_sent: report.ram.map(|ram| ram.transferred),
        ..Finished::new(outcome(report.outcome))
    }
}

/// One line per outcome: a new one does not compile until it has its place here.
fn outcome(outcome: Outcome) -> metrics::Outcome {
    match outcome {
        Outcome::Migrated => metrics::Outcome::Success,
        Outcome::Failed => metrics::Outcome::Failed,
        Outcome::TimedOut => metrics::Outcome::Timeout,
        Outcome::Cancelled => metrics::Outcome::Cancelled,
        Outcome::Refused => metrics::Outcome::Refused,
        Outcome::Undecided => metrics::Outcome::Undecided,
    }
}

fn verdict(verdict: Verdict) -> metrics::Verdict {
    match verdict {
        Verdict::Proven => metrics::Verdict::Proven,
        Verdict::Violated => metrics::Verdict::Violated,
        Verdict::Unproven => metrics::Verdict::Unproven,
    }
}

/// The ledger's counters, by the names that they have in the report.
fn hops(ledger: &LedgerReport) -> Vec<HopCount> {
    let passed = |count: Option<super::ledger::Count>| count.map(|count| count.packets);
    [
        ("s1", passed(ledger.s1)),
        ("s2", passed(ledger.s2)),
        ("s2_read", ledger.s2_read),
        ("s3", passed(ledger.s3)),
        ("d1", passed(ledger.d1)),
        ("d2", passed(ledger.d2)),
        ("d3", passed(ledger.d3)),
        ("d3_read", ledger.d3_read),
    ]
    .map(|(hop, packets)| HopCount { hop, packets })
    .to_vec()
}

/// Packets that an incomplete ledger does not miss may be missing all the same.
fn known(packets: u64, verdict: Verdict) -> Option<u64> {
    (packets > 0 || verdict != Verdict::Unproven).then_some(packets)
}

/// Two clocks may disagree by more than a very short pause took: then it was not measured.
fn pause(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::ledger::Count;
    use crate::role::Role;
    use crate::session_id::SessionId;

    fn report(outcome: Outcome) -> Report {
        let mut report = Report::new(SessionId(1), Role::Source);
        report.outcome = outcome;
        report
    }

    fn packets(finished: &Finished, hop: &str) -> Option<u64> {
        let found = finished.hops.iter().find(|count| count.hop == hop);
        found.unwrap_or_else(|| panic!("no {hop}")).packets
    }

    #[test]
    fn every_counter_of_the_ledger_is_told_and_a_missing_one_is_not_zero() {
        let mut report = report(Outcome::Migrated);
        report.verdict = Verdict::Proven;
        report.downtime_ms = Some(12.5);
        report.blackout_ms = Some(-0.1);
        report.ledger = Some(LedgerReport {
            s1: Some(Count {
                packets: 5,
                bytes: 500,
            }),
            d3_read: Some(7),
            ..LedgerReport::default()
        });
        let finished = measured(&report);
        assert_eq!(packets(&finished, "s1"), Some(5));
        assert_eq!(packets(&finished, "d3_read"), Some(7));
        assert_eq!(packets(&finished, "d1"), None);
        assert_eq!(finished.downtime, Some(Duration::from_micros(12_500)));
        assert_eq!(finished.blackout, None);
        assert_eq!(finished.lost, Some(0));
        assert_eq!(finished.kernel_drops, None);
        assert_eq!(finished.verdict, Some(metrics::Verdict::Proven));
    }

    #[test]
    fn without_proof_no_loss_is_not_a_loss_of_zero() {
        let mut report = report(Outcome::Migrated);
        report.verdict = Verdict::Unproven;
        report.ledger = Some(LedgerReport::default());
        assert_eq!(measured(&report).lost, None);
        report.ledger = Some(LedgerReport {
            lost: 3,
            ..LedgerReport::default()
        });
        assert_eq!(measured(&report).lost, Some(3));
    }

    #[test]
    fn only_a_vm_that_arrived_has_a_verdict() {
        for outcome in [
            Outcome::Failed,
            Outcome::Refused,
            Outcome::Cancelled,
            Outcome::Undecided,
        ] {
            assert_eq!(measured(&report(outcome)).verdict, None, "{outcome:?}");
        }
    }
}
