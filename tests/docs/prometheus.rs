//! Prometheus' own opinion, where its programs are at hand: of what is exposed, of the file, of the rules,
//! and whether the alerts go off.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use katamaran::metrics::{Exporter, Metrics};
use katamaran::role::Role;
use katamaran_tests::lab::Process;
use katamaran_tests::need::{Need, met, node_exporter, promtool};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::metrics::{Series, full_end, full_metrics, series, show_progress};
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
        &[Need::Prometheus],
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
    if !met("promtool_takes_the_rules", &[Need::Prometheus]) {
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
        &[Need::Prometheus],
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

/// A file as two sides and a run before them leave it.
async fn write_file(path: &Path) {
    let ends = Exporter::open(Role::Source, None, Some(path)).unwrap();
    let (metrics, ends) = (ends.metrics(), ends.start());
    show_progress(&metrics);
    ends.finish(&full_end()).await.unwrap();
    let goes_on = Exporter::open(Role::Destination, None, Some(path)).unwrap();
    let (metrics, _goes_on) = (goes_on.metrics(), goes_on.start());
    show_progress(&metrics);
    let shown = || std::fs::read_to_string(path).unwrap().contains("session=");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !shown() {
        assert!(Instant::now() < deadline, "the file does not show it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn node_exporter_shows_the_file_as_it_is() {
    if !met("node_exporter_shows_the_file_as_it_is", &[Need::Prometheus]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("katamaran.prom");
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(write_file(&file));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let address = free.unwrap().to_string();
    let mut command = node_exporter();
    command
        .args(["--collector.disable-defaults", "--collector.textfile"])
        .arg("--collector.textfile.directory")
        .arg(dir.path())
        .args(["--web.listen-address", &address])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let _exporter = Process::spawn("node_exporter", command, None).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let shown = loop {
        if let Some(answer) = get(&address) {
            break answer;
        }
        assert!(Instant::now() < deadline, "node_exporter does not answer");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(
        shown.contains("\nnode_textfile_scrape_error 0\n"),
        "{shown}"
    );
    let key = |series: &Series| (series.name.clone(), series.labels.clone());
    let shown: BTreeSet<_> = series(&shown).iter().map(key).collect();
    let written = std::fs::read_to_string(&file).unwrap();
    for series in series(&written) {
        assert!(shown.contains(&key(&series)), "{series:?} is not shown");
    }
}

fn get(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "GET /metrics HTTP/1.0\r\nHost: {address}\r\nAccept: text/plain\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.to_owned())
}
