//! `katamaran preflight` where there is no VM: usage, output, exit status.

use std::process::Command;

use katamaran_tests::run::katamaran_binary;
use serde_json::Value;

use crate::support::{Monitor, and, katamaran, with};

const STATUSES: [&str; 4] = ["ok", "degraded", "missing", "unchecked"];

fn preflight(flags: &[String]) -> Vec<String> {
    let mut words = vec!["preflight".to_owned()];
    words.extend_from_slice(flags);
    words
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The lines of a result, after a look at its form.
#[track_caller]
fn checks(json: &str) -> Vec<Value> {
    let result: Value = serde_json::from_str(json).unwrap();
    assert_eq!(result["schema"], 1, "{result:#}");
    let checks = result["checks"].as_array().unwrap();
    for check in checks {
        let status = check["status"].as_str().unwrap();
        assert!(STATUSES.contains(&status), "{check}");
        assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
        let advised = check["advice"]
            .as_str()
            .is_some_and(|advice| !advice.is_empty());
        assert_eq!(advised, status != "ok", "{check}");
    }
    checks.clone()
}

fn has(checks: &[Value], status: &str) -> bool {
    checks.iter().any(|check| check["status"] == status)
}

#[test]
fn bad_usage_is_refused_as_a_migrations_is_and_nobody_is_called() {
    let monitor = Monitor::new();
    let source = || monitor.source_flags();
    for (flags, words) in [
        (
            with(source(), "--mode", Some("sauce")),
            &["sauce", "source or dest"][..],
        ),
        (
            with(source(), "--vm-ip", Some("10.1.0.300")),
            &["--vm-ip", "10.1.0.300"],
        ),
        (
            with(source(), "--vm-ip", Some("fd00::5")),
            &["mixed address families"],
        ),
        (with(source(), "--tunnel-mode", Some("pigeon")), &["pigeon"]),
        (and(source(), &["--listen", "10.0.0.1"]), &["--listen"]),
        (and(source(), &["stray"]), &["stray"]),
        (with(source(), "--downtime", Some("0")), &["--downtime 0"]),
        (
            self::words(&["--mode", "dest", "--dest-ip", "10.0.0.2"]),
            &["--dest-ip"],
        ),
    ] {
        let ended = katamaran(&preflight(&flags));
        ended.expect(2, words);
        assert!(ended.stdout.is_empty(), "{ended:#?}");
        assert!(monitor.caller().is_none(), "{flags:?}");
    }
}

#[test]
fn without_flags_the_node_is_looked_at_as_both_sides() {
    let ended = katamaran(&["preflight", "--json"]);
    let result: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        result["sides"],
        serde_json::json!(["source", "destination"])
    );
    let checks = checks(&ended.stdout);
    let expected = if has(&checks, "missing") { 2 } else { 0 };
    assert_eq!(ended.status, Some(expected), "{ended:#?}");
    for area in ["kernel", "privileges", "port", "buffer"] {
        assert!(
            checks.iter().any(|check| check["area"] == area),
            "{area} in {checks:#?}"
        );
    }
    let strict = katamaran(&["preflight", "--strict"]);
    let perfect = checks.iter().all(|check| check["status"] == "ok");
    assert_eq!(
        strict.status,
        Some(if perfect { 0 } else { 2 }),
        "{strict:#?}"
    );
}

#[test]
fn people_get_columns_of_80() {
    let ended = katamaran(&["preflight", "-mode", "source", "-dest-ip", "192.0.2.77"]);
    for line in ended.stdout.lines() {
        let breakable = line.trim().contains(' ');
        assert!(!breakable || line.chars().count() <= 80, "{line}");
    }
    for word in ["as source", "kernel", "--qmp.", "to migrate:"] {
        assert!(ended.stdout.contains(word), "{word} is not in {ended:#?}");
    }
}

#[test]
fn a_monitor_that_says_nothing_is_told_with_what_may_hold_it() {
    let monitor = Monitor::new();
    let flags = and(monitor.destination_flags(), &["--json"]);
    let ended = katamaran(&preflight(&flags));
    assert_eq!(ended.status, Some(2), "{ended:#?}");
    let checks = checks(&ended.stdout);
    let qmp = checks.iter().find(|check| check["name"] == "qmp").unwrap();
    assert_eq!(qmp["status"], "missing");
    assert!(
        qmp["advice"]
            .as_str()
            .unwrap()
            .contains("one client at a time"),
        "{qmp}"
    );
}

#[test]
fn who_has_no_privilege_is_told_what_could_not_be_looked_at() {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
        ]);
        command.arg(katamaran_binary().unwrap());
        command
    } else {
        Command::new(katamaran_binary().unwrap())
    };
    let output = command.args(["preflight", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let checks = checks(&String::from_utf8(output.stdout).unwrap());
    let status = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check
            .map_or("", |check| check["status"].as_str().unwrap())
            .to_owned()
    };
    assert_eq!(status("cap-net-admin"), "missing");
    assert_eq!(status("cap-perfmon"), "degraded");
    assert_eq!(status("trials"), "unchecked");
}

#[test]
fn help_tells_what_the_words_and_the_exit_status_mean() {
    let ended = katamaran(&["preflight", "--help"]);
    assert_eq!(ended.status, Some(0), "{ended:#?}");
    for word in [
        "--json",
        "--strict",
        "--qmp",
        "degraded",
        "unchecked",
        "Exit status:",
    ] {
        assert!(ended.stdout.contains(word), "{word} is not in {ended:#?}");
    }
}
