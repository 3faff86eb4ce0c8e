//! Prometheus' own opinion, where its `promtool` is at hand (`$PROMTOOL`, or on the path): of what is
//! exposed, of the rules, and whether the alerts go off.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use katamaran::metrics::{Metrics, Role};
use katamaran_tests::need::{Need, met, promtool};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::metrics::full_metrics;
use crate::yaml::manifests;

#[track_caller]
fn run(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&said),
        input
    );
}

/// The rules of all documents, as one file. JSON is YAML.
fn write_rules(dir: &Path) -> PathBuf {
    let groups: Vec<Value> = manifests()
        .into_iter()
        .filter(|(_, manifest)| manifest["kind"] == "PrometheusRule")
        .flat_map(|(_, manifest)| manifest["spec"]["groups"].as_array().unwrap().clone())
        .collect();
    let path = dir.join("rules.yml");
    std::fs::write(&path, json!({ "groups": groups }).to_string()).unwrap();
    path
}

#[test]
fn promtool_has_nothing_to_say_against_what_is_exposed() {
    if !met(
        "promtool_has_nothing_to_say_against_what_is_exposed",
        &[Need::Promtool],
    ) {
        return;
    }
    for role in [Role::Source, Role::Destination] {
        for metrics in [Metrics::new(role), full_metrics(role)] {
            run(promtool().args(["check", "metrics"]), &metrics.text());
        }
    }
}

#[test]
fn promtool_takes_the_rules() {
    if !met("promtool_takes_the_rules", &[Need::Promtool]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let rules = write_rules(dir.path());
    run(promtool().args(["check", "rules"]).arg(rules), "");
}

/// A series and its values, one a minute.
type Input = (&'static str, &'static str);

/// An alert of the guide, the minute at which it must be on, and what sets it off.
const ALARMS: &[(&str, u32, &[Input])] = &[
    (
        "KatamaranPacketsLost",
        6,
        &[(
            "katamaran_migration_verdicts_total{role=\"source\",verdict=\"violated\"}",
            "0 0 0 1x10",
        )],
    ),
    // A counter that was not there before.
    (
        "KatamaranUndecided",
        3,
        &[(
            "katamaran_migration_migrations_total{role=\"source\",result=\"undecided\"}",
            "_ _ 1x10",
        )],
    ),
    (
        "KatamaranCrashed",
        6,
        &[(
            "katamaran_migration_migrations_total{role=\"source\",result=\"crashed\"}",
            "0 0 0 1x10",
        )],
    ),
    (
        "KatamaranStuck",
        61,
        &[(
            "katamaran_migration_start_time_seconds{role=\"source\"}",
            "0x100",
        )],
    ),
    (
        "KatamaranMetricsStale",
        6,
        &[
            (
                "katamaran_migration_active_migrations{role=\"source\"}",
                "1x20",
            ),
            (
                "node_textfile_mtime_seconds{file=\"/v/katamaran.prom\"}",
                "0x20",
            ),
        ],
    ),
    (
        "KatamaranMetricsFileUnreadable",
        6,
        &[("node_textfile_scrape_error", "1x20")],
    ),
    (
        "VolumeAttachedTwiceForTooLong",
        16,
        &[("rds_csi_migration_active_migrations", "1x20")],
    ),
    (
        "VolumeMigrationTimedOut",
        6,
        &[(
            "rds_csi_migration_migrations_total{result=\"timeout\"}",
            "0 0 0 1x10",
        )],
    ),
    (
        "VolumeMigrationsFail",
        6,
        &[(
            "rds_csi_migration_migrations_total{result=\"failed\"}",
            "0 0 0 1x10",
        )],
    ),
];

#[test]
fn every_alert_goes_off_when_it_should_and_not_before() {
    if !met(
        "every_alert_goes_off_when_it_should_and_not_before",
        &[Need::Promtool],
    ) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let rules = write_rules(dir.path());
    let known: Vec<Value> = manifests()
        .into_iter()
        .filter(|(_, manifest)| manifest["kind"] == "PrometheusRule")
        .flat_map(|(_, m)| m["spec"]["groups"].as_array().unwrap().clone())
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect();
    assert_eq!(known.len(), ALARMS.len(), "every alert is tried");
    let tests: Vec<Value> = ALARMS
        .iter()
        .map(|(alert, minute, series)| {
            let series: Vec<Value> = series
                .iter()
                .map(|(series, values)| json!({ "series": series, "values": values }))
                .collect();
            // `ALERTS` has one series per alert that is on; labels do not matter here.
            let firing = format!("count(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})");
            let asked = |at: u32, samples: Value| {
                json!({ "expr": firing, "eval_time": format!("{at}m"), "exp_samples": samples })
            };
            json!({
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    asked(0, json!([])),
                    asked(*minute, json!([{ "labels": "{}", "value": 1 }])),
                ],
            })
        })
        .collect();
    let file = dir.path().join("test.yml");
    let test = json!({ "rule_files": [rules], "evaluation_interval": "1m", "tests": tests });
    std::fs::write(&file, test.to_string()).unwrap();
    run(promtool().args(["test", "rules"]).arg(file), "");
}
