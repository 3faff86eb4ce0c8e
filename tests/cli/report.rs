//! `katamaran report FILE`.

use std::path::PathBuf;

use katamaran::migrate::ledger::Verdict;
use katamaran::migrate::report::{Outcome, Report};
use katamaran::role::Role;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Ended, katamaran};

/// A report of a migration that went well, to be spoilt.
fn good() -> Value {
    let mut report = Report::new("00c0ffee00c0ffee".parse().unwrap(), Role::Source);
    report.outcome = Outcome::Migrated;
    report.verdict = Verdict::Proven;
    report.downtime_ms = Some(12.5);
    serde_json::to_value(&report).unwrap()
}

fn file(dir: &TempDir, content: &[u8]) -> PathBuf {
    let path = dir.path().join("report.json");
    std::fs::write(&path, content).unwrap();
    path
}

fn show(content: &[u8]) -> (Ended, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, content);
    (katamaran(&["report", &path.display().to_string()]), path)
}

#[test]
fn a_report_is_shown_as_a_person_reads_it() {
    let (ended, _) = show(good().to_string().as_bytes());
    assert_eq!(ended.status, Some(0), "{ended:#?}");
    for word in ["00c0ffee00c0ffee", "migrated", "12.5 ms", "proven"] {
        assert!(ended.stdout.contains(word), "{word} is not in {ended:#?}");
    }
}

#[test]
fn what_is_no_report_is_refused_with_its_name() {
    for garbage in [&b""[..], b"\0\xff\xfe", b"[]", b"{\"schema\": 1}", b"hello"] {
        let (ended, path) = show(garbage);
        ended.expect(2, &[&path.display().to_string()]);
        assert!(ended.stdout.is_empty(), "{ended:#?}");
    }
}

#[test]
fn a_report_of_another_schema_is_refused_with_its_number() {
    let mut report = good();
    report["schema"] = json!(7);
    let (ended, path) = show(report.to_string().as_bytes());
    ended.expect(2, &["schema 7", &path.display().to_string()]);
    // Another schema need not have our fields.
    let (ended, _) = show(br#"{"schema": 7, "result": "fine"}"#);
    ended.expect(2, &["schema 7"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("none.json").display().to_string();
    katamaran(&["report", &path]).expect(2, &[&path]);
    katamaran(&["report"]).expect(2, &["FILE"]);
}
