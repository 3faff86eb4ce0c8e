//! `--metrics-listen` and `--metrics-file`, as far as they go without a VM.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use katamaran_tests::lab::Process;
use katamaran_tests::need::{Need, met};
use katamaran_tests::run::katamaran_binary;
use tempfile::TempDir;

use crate::support::{Monitor, and, katamaran, with};

/// Katamarans that run at the same time.
const MANY: usize = 8;

fn prom(dir: &TempDir) -> PathBuf {
    dir.path().join("katamaran.prom")
}

/// Flags of a run that is refused as soon as it looks for its VM.
fn refused_run(monitor: &Monitor, more: &[&str]) -> Vec<String> {
    let flags = with(
        monitor.source_flags(),
        "--qmp",
        Some("/nonexistent/qmp.sock"),
    );
    and(flags, more)
}

fn lines(dir: &TempDir) -> Vec<String> {
    let text = std::fs::read_to_string(prom(dir)).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_bad_address_or_file_is_refused_by_name_and_nothing_is_touched() {
    let monitor = Monitor::new();
    for base in [monitor.source_flags(), monitor.destination_flags()] {
        for (flag, value) in [
            ("--metrics-listen", "9478"),
            ("--metrics-listen", "node-a:9478"),
            ("--metrics-listen", "127.0.0.1:65536"),
            // Not an address of this machine.
            ("--metrics-listen", "192.0.2.99:9478"),
            ("--metrics-file", "/tmp/katamaran.txt"),
            ("--metrics-file", "/nonexistent/katamaran.prom"),
        ] {
            let ended = katamaran(&with(base.clone(), flag, Some(value)));
            ended.expect(2, &[flag, value]);
            assert!(ended.stdout.is_empty(), "{ended:#?}");
        }
    }
    assert!(monitor.caller().is_none());
}

#[test]
fn an_address_in_use_is_refused_and_nothing_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let monitor = Monitor::new();
    for base in [monitor.source_flags(), monitor.destination_flags()] {
        let ended = katamaran(&and(base, &["--metrics-listen", &address]));
        ended.expect(2, &["--metrics-listen", &address, "in use"]);
    }
    assert!(monitor.caller().is_none());
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_kept() {
    let dir = TempDir::new().unwrap();
    std::fs::write(prom(&dir), "node_load1 0.5\n").unwrap();
    let path = prom(&dir).display().to_string();
    let monitor = Monitor::new();
    for base in [monitor.source_flags(), monitor.destination_flags()] {
        let ended = katamaran(&and(base, &["--metrics-file", &path]));
        ended.expect(2, &["--metrics-file", &path, "thrown away"]);
    }
    assert!(monitor.caller().is_none());
    assert_eq!(
        std::fs::read_to_string(prom(&dir)).unwrap(),
        "node_load1 0.5\n"
    );
}

#[test]
fn katamarans_that_share_a_file_lose_no_count() {
    if !met("katamarans_that_share_a_file_lose_no_count", &[Need::Bpf]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = prom(&dir).display().to_string();
    let monitor = Monitor::new();
    let flags = refused_run(&monitor, &["--metrics-file", &path]);
    thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| katamaran(&flags).expect(2, &["/nonexistent/qmp.sock"]));
        }
    });
    let lines = lines(&dir);
    let has = |line: String| lines.contains(&line);
    assert!(
        has(format!(
            "katamaran_migration_refusals_total{{role=\"source\"}} {MANY}"
        )),
        "{lines:#?}"
    );
    assert!(has(
        "katamaran_migration_migrations_total{role=\"source\",result=\"failed\"} 0".to_owned()
    ));
    assert!(
        has("katamaran_migration_active_migrations{role=\"source\"} 0".to_owned()),
        "{lines:#?}"
    );
}

/// A source that waits for a monitor which says nothing: the beginning of a migration.
fn start_and_wait(monitor: &Monitor, more: &[&str], began: impl Fn() -> bool) -> Process {
    let mut command = Command::new(katamaran_binary().unwrap());
    command.args(and(monitor.source_flags(), more));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = Process::spawn("katamaran", command, None).unwrap();
    // The silent monitor is given up after 5 s.
    let deadline = Instant::now() + Duration::from_secs(4);
    while !began() {
        assert!(
            Instant::now() < deadline && process.try_wait().unwrap().is_none(),
            "it did not begin"
        );
        thread::sleep(Duration::from_millis(5));
    }
    process
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(4)))
        .unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn a_killed_katamaran_is_counted_by_the_next_one() {
    if !met(
        "a_killed_katamaran_is_counted_by_the_next_one",
        &[Need::Bpf],
    ) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = prom(&dir).display().to_string();
    let monitor = Monitor::new();
    let active =
        |number: u32| format!("katamaran_migration_active_migrations{{role=\"source\"}} {number}");
    let mut process = start_and_wait(&monitor, &["--metrics-file", &path], || {
        prom(&dir).exists() && lines(&dir).contains(&active(1))
    });
    process.kill();
    let flags = refused_run(&monitor, &["--metrics-file", &path]);
    katamaran(&flags).expect(2, &["/nonexistent/qmp.sock"]);
    let lines = lines(&dir);
    for line in [
        active(0),
        "katamaran_migration_migrations_total{role=\"source\",result=\"crashed\"} 1".to_owned(),
        "katamaran_migration_refusals_total{role=\"source\"} 1".to_owned(),
    ] {
        assert!(lines.contains(&line), "no {line} in {lines:#?}");
    }
}

#[test]
fn metrics_are_served_while_it_runs() {
    if !met("metrics_are_served_while_it_runs", &[Need::Bpf]) {
        return;
    }
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let address = free.unwrap().to_string();
    let monitor = Monitor::new();
    let active = "\nkatamaran_migration_active_migrations{role=\"source\"} 1\n";
    let mut process = start_and_wait(&monitor, &["--metrics-listen", &address], || {
        get(&address, "/metrics").is_some_and(|answer| answer.contains(active))
    });
    let answer = get(&address, "/metrics").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer = get(&address, "/").unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let status = process.wait_until(Instant::now() + Duration::from_secs(9));
    assert_eq!(status.unwrap().code(), Some(2));
    assert!(get(&address, "/metrics").is_none(), "it is over");
}
