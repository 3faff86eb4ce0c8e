//! Two signals: katamaran ends at once, says what it leaves, and that is removed by what it names.

use std::time::Duration;

use katamaran_tests::lab::{Node, QemuVersion};
use katamaran_tests::leak::session_files;
use katamaran_tests::run::{Migration, MigrationOptions, Role, Stage, StageOptions};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{both, katamaran, require};

/// From the second signal to the end.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The command that a side names when it quits, without its first word.
#[track_caller]
fn named_by(log: &str) -> Vec<String> {
    let told = log.split_once("quitting at once: ").expect(log).1;
    let command = told.split_once("`katamaran ").expect(told).1;
    let command = command.split('`').next().expect(command);
    command.split_whitespace().map(str::to_owned).collect()
}

fn signalled_twice(role: Role, node: Node) {
    let mut stage = Stage::set(StageOptions::new(QemuVersion::StandIn, 300)).unwrap();
    let options = MigrationOptions {
        // The other side goes on alone for a while.
        leaks: None,
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until_logged(Role::Dest, "phase=\"prepare\"")
        .unwrap();
    // Whoever is told to end waits for the other node, in vain.
    let port = Node::B.fabric_port();
    for way in ["iifname", "oifname"] {
        let lab = &migration.stage.lab;
        lab.drop_in_fabric(&format!("{way} {port}")).unwrap();
    }
    let process = migration.side(role).process();
    process.signal(Signal::SIGINT).unwrap();
    migration
        .look_until_logged(role, "once more quits without cleaning up")
        .unwrap();
    migration.signal(role, Signal::SIGINT, AT_ONCE).unwrap();
    let (ended, _) = migration.end().unwrap();
    let told = match role {
        Role::Source => &ended.source,
        Role::Dest => &ended.dest,
    };
    assert_eq!(told.status, Some(130), "{}", both(&ended));
    let command = named_by(&told.stderr);
    let session = command.last().unwrap().clone();
    assert_ne!(session_files(&session), Vec::<String>::new());

    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let (exit, said) = katamaran(&stage, node, &words);
    assert_eq!(exit, Some(0), "{said}\n{}", both(&ended));
    assert_eq!(session_files(&session), Vec::<String>::new(), "{said}");
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(&ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None);
    assert_eq!(client.lost(), 0, "{client:?}");
}

#[test]
fn a_source_that_is_signalled_twice_says_what_it_leaves_and_cleanup_removes_it() {
    require!(Root, Bpf, Lab);
    signalled_twice(Role::Source, Node::A);
}

#[test]
fn a_destination_that_is_signalled_twice_says_what_it_leaves_and_cleanup_removes_it() {
    require!(Root, Bpf, Lab);
    signalled_twice(Role::Dest, Node::B);
}
