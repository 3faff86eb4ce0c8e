//! A QMP socket that is none: found out before anything is touched, so exit 2.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use katamaran_tests::need::{Need, met};

use crate::support::{Ended, Monitor, and, katamaran, with};

/// Runs the command while whoever calls the monitor is told `words`, and nothing more.
fn told(monitor: &Monitor, flags: &[String], words: &[u8]) -> Ended {
    talked_to(monitor, flags, |mut caller| {
        caller.write_all(words).unwrap()
    })
}

/// Runs the command while the monitor talks to whoever calls it.
fn talked_to(monitor: &Monitor, flags: &[String], talk: impl Fn(&UnixStream)) -> Ended {
    thread::scope(|scope| {
        let command = scope.spawn(|| katamaran(flags));
        let mut callers = Vec::new();
        while !command.is_finished() {
            if let Some(caller) = monitor.caller() {
                talk(&caller);
                // Kept, for a connection that ends would be another answer.
                callers.push(caller);
            }
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(callers.len(), 1, "the monitor was called");
        command.join().unwrap()
    })
}

/// Without its programs the command says so before it looks for QEMU.
fn has_programs(test: &str) -> bool {
    met(test, &[Need::Bpf])
}

fn both_sides(monitor: &Monitor) -> [Vec<String>; 2] {
    [monitor.source_flags(), monitor.destination_flags()]
}

#[test]
fn a_socket_that_does_not_exist_is_named() {
    if !has_programs("a_socket_that_does_not_exist_is_named") {
        return;
    }
    let monitor = Monitor::new();
    for flags in both_sides(&monitor) {
        let flags = with(flags, "--qmp", Some("/nonexistent/qmp.sock"));
        katamaran(&flags).expect(2, &["/nonexistent/qmp.sock", "No such file"]);
    }
}

#[test]
fn a_file_that_is_no_socket_is_named() {
    if !has_programs("a_file_that_is_no_socket_is_named") {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let monitor = Monitor::new();
    for flags in both_sides(&monitor) {
        katamaran(&with(flags, "--qmp", Some(&path))).expect(2, &[&path]);
    }
}

#[test]
fn a_socket_that_speaks_something_else_is_told_from_a_monitor() {
    if !has_programs("a_socket_that_speaks_something_else_is_told_from_a_monitor") {
        return;
    }
    for words in [
        &b"220 mail.example.org ESMTP\r\n"[..],
        b"{\"hello\": 1}\n",
        b"\0\xff\xfe\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46\n",
        b"{\"QMP\": {}}\n",
    ] {
        let monitor = Monitor::new();
        for flags in both_sides(&monitor) {
            told(&monitor, &flags, words).expect(2, &["not a QMP monitor"]);
        }
    }
}

#[test]
fn a_silent_socket_is_given_up_after_five_seconds() {
    if !has_programs("a_silent_socket_is_given_up_after_five_seconds") {
        return;
    }
    let monitor = Monitor::new();
    let started = Instant::now();
    told(&monitor, &monitor.source_flags(), b"").expect(2, &["no QMP greeting"]);
    assert!(
        started.elapsed() >= Duration::from_secs(4),
        "not given its time"
    );
}

#[test]
fn half_a_greeting_is_quoted_when_its_time_is_over() {
    if !has_programs("half_a_greeting_is_quoted_when_its_time_is_over") {
        return;
    }
    let monitor = Monitor::new();
    let flags = monitor.destination_flags();
    told(&monitor, &flags, b"{\"QMP\": {\"version\"").expect(2, &["not a QMP monitor", "version"]);
}

#[test]
fn a_greeting_without_end_takes_neither_memory_nor_time() {
    if !has_programs("a_greeting_without_end_takes_neither_memory_nor_time") {
        return;
    }
    let monitor = Monitor::new();
    let flags = monitor.source_flags();
    let ended = thread::scope(|scope| {
        let command = scope.spawn(|| katamaran(&flags));
        let mut caller = None;
        while caller.is_none() && !command.is_finished() {
            caller = monitor.caller();
            thread::sleep(Duration::from_millis(2));
        }
        let mut sent = 0_usize;
        if let Some(mut caller) = caller {
            let part = vec![b'{'; 1 << 20];
            while sent < 1 << 30 && caller.write_all(&part).is_ok() {
                sent += part.len();
            }
        }
        assert!(sent < 64 << 20, "{sent} bytes of one line were taken");
        command.join().unwrap()
    });
    ended.expect(2, &["not a QMP monitor", "{{{{"]);
}

#[test]
fn a_path_that_is_no_network_namespace_is_named() {
    if !has_programs("a_path_that_is_no_network_namespace_is_named") {
        return;
    }
    let monitor = Monitor::new();
    let flags = and(monitor.source_flags(), &["--tap-netns", "/dev/null"]);
    let greeting =
        b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2, \"micro\": 0}}}}\n";
    let reply = b"{\"return\": {}, \"id\": 1}\n";
    let converse = |mut caller: &UnixStream| {
        caller.write_all(greeting).unwrap();
        // No monitor answers before it is asked.
        caller.set_nonblocking(false).unwrap();
        let mut command = String::new();
        BufReader::new(caller).read_line(&mut command).unwrap();
        assert!(command.contains("qmp_capabilities"), "{command}");
        caller.write_all(reply).unwrap();
    };
    talked_to(&monitor, &flags, converse).expect(2, &["/dev/null", "no namespace"]);
}

#[test]
fn a_refusal_is_written_into_the_report() {
    if !has_programs("a_refusal_is_written_into_the_report") {
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("report.json");
    let monitor = Monitor::new();
    let flags = with(
        monitor.source_flags(),
        "--qmp",
        Some("/nonexistent/qmp.sock"),
    );
    let ended = katamaran(&and(flags, &["--report", &path.display().to_string()]));
    ended.expect(2, &[]);
    assert!(ended.stdout.contains("nothing was touched"), "{ended:#?}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["outcome"], "refused");
    assert_eq!(report["verdict"], "unproven");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("/nonexistent/qmp.sock"), "{error}");
}
