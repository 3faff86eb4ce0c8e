//! The table of metrics, and a page on which every metric is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use katamaran::metrics::{Disk, Finished, Metrics, Outcome, Ram, Verdict, catalogue};
use katamaran::migrate::ledger::Count;
use katamaran::migrate::measured;
use katamaran::migrate::report::{self, LedgerReport, Report};
use katamaran::role::Role;
use katamaran::session_id::SessionId;

use crate::markdown::document;

const TABLE: &str = "docs/metrics.md";

/// One series: its name, with the suffix of a histogram's line, and its labels.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// A report in which everything was measured.
fn full_report() -> Report {
    let count = Some(Count {
        packets: 10,
        bytes: 1000,
    });
    let mut report = Report::new(SessionId(1), Role::Source);
    report.outcome = report::Outcome::Migrated;
    report.downtime_ms = Some(16.6);
    report.blackout_ms = Some(25.0);
    report.ram = Some(report::Ram::default());
    report.ledger = Some(LedgerReport {
        s1: count,
        s2: count,
        s2_read: Some(10),
        s3: count,
        d1: count,
        d2: count,
        d3: count,
        d3_read: Some(10),
        x: Some(0),
        lost: 1,
        duplicated: 1,
        ..LedgerReport::default()
    });
    report
}

/// A migration begins and has got some way.
pub(crate) fn show_progress(metrics: &Metrics) {
    metrics.begin(SessionId(1));
    metrics.phase("copy RAM");
    metrics.ram(Ram {
        total_bytes: 1,
        transferred_bytes: 1,
        remaining_bytes: 1,
        passes: 1,
        bandwidth: Some(1.0),
        dirty_rate: Some(1.0),
        predicted_downtime: Some(Duration::from_millis(1)),
    });
    let disk = Disk {
        size_bytes: Some(1),
        transferred_bytes: Some(1),
        backlog_bytes: Some(1),
        bandwidth: Some(1.0),
    };
    metrics.disk("drive-virtio-disk0", disk);
}

/// A migration that measured everything.
pub(crate) fn full_end() -> Finished {
    measured(&full_report())
}

/// A side after migrations of all kinds and during another: every metric with every value of its labels.
pub(crate) fn full_metrics(role: Role) -> Metrics {
    let full = full_report();
    let mut without_counters = full.clone();
    without_counters.ledger = Some(LedgerReport::default());
    let mut ends: Vec<Finished> = [
        Outcome::Failed,
        Outcome::Timeout,
        Outcome::Cancelled,
        Outcome::Undecided,
        Outcome::Refused,
    ]
    .map(Finished::new)
    .to_vec();
    ends.extend([measured(&full), measured(&without_counters)]);
    ends.push(Finished {
        verdict: Some(Verdict::Violated),
        ..measured(&full)
    });
    let metrics = Metrics::new(role);
    for end in &ends {
        show_progress(&metrics);
        metrics.finish(end);
    }
    show_progress(&metrics);
    metrics
}

/// What both sides show, from the real encoder.
pub(crate) fn full_scrape() -> String {
    [Role::Source, Role::Destination]
        .map(|role| full_metrics(role).text())
        .concat()
}

/// The series of a scrape.
pub(crate) fn series(scrape: &str) -> Vec<Series> {
    let parse = |line: &str| {
        let (series, _value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split("\",");
        let labels = labels
            .filter_map(|label| label.split_once("=\""))
            .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()));
        Series {
            name: name.to_owned(),
            labels: labels.collect(),
        }
    };
    let lines = scrape.lines().filter(|line| !line.starts_with('#'));
    lines.map(parse).collect()
}

#[test]
fn the_full_scrape_shows_every_metric_with_its_labels() {
    let series = series(&full_scrape());
    for family in catalogue() {
        let found = series.iter().find(|series| {
            let suffix = series.name.strip_prefix(family.name);
            matches!(suffix, Some("" | "_bucket"))
        });
        let found = found.unwrap_or_else(|| panic!("no {}", family.name));
        for label in family.labels {
            assert!(
                found.labels.contains_key(*label),
                "{found:?} has no {label}"
            );
        }
    }
}

#[test]
fn the_table_lists_exactly_the_metrics_that_exist() {
    let rows = document(TABLE).rows();
    let listed: Vec<&Vec<String>> = rows
        .iter()
        .filter(|row| row[0].starts_with("katamaran_"))
        .collect();
    let names: BTreeSet<&str> = listed.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names.len(), listed.len(), "one is listed twice");
    let exist: BTreeSet<&str> = catalogue().iter().map(|family| family.name).collect();
    assert_eq!(names, exist);
    for family in catalogue() {
        let row = listed.iter().find(|row| row[0] == family.name).unwrap();
        assert_eq!(row[1], family.kind.name(), "{row:?}");
        let labels: Vec<&str> = row[2].split(", ").filter(|l| !l.is_empty()).collect();
        assert_eq!(labels, family.labels, "{row:?}");
        assert!(row[3].len() > 10, "{} has no meaning", family.name);
    }
}

#[test]
fn every_value_of_a_label_is_explained() {
    let text = document(TABLE).text;
    for series in series(&full_scrape()) {
        for (name, value) in &series.labels {
            if matches!(name.as_str(), "role" | "result" | "verdict" | "hop") {
                assert!(
                    text.contains(&format!("`{value}`")),
                    "{TABLE} does not explain {name}={value:?}"
                );
            }
        }
    }
}
