//! katamaran itself is killed: what it left is told, removed, and never turned into two running copies.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use katamaran_tests::lab::{Node, QemuVersion, Wiring};
use katamaran_tests::leak::{Scope, Snapshot, session_files};
use katamaran_tests::run::{
    KatamaranProcess, Migration, MigrationOptions, Role, Stage, StageOptions, TrafficSpec,
};
use serde_json::Value;

use crate::support::{both, katamaran, report, require};

/// Longer than the kernel takes to free what a dead process had.
const SOON: Duration = Duration::from_secs(5);

fn stage() -> Stage {
    Stage::set(StageOptions {
        traffic: TrafficSpec {
            pps_v4: 500,
            pps_v6: 200,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap()
}

fn begin<'a>(stage: &'a mut Stage, flags: &[&str]) -> Migration<'a> {
    let options = MigrationOptions {
        source_args: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..MigrationOptions::default()
    };
    Migration::begin(stage, &options).unwrap()
}

/// The session that the katamaran with this pid runs.
#[track_caller]
fn session_of(pid: u32) -> String {
    let found = journals().into_iter().find_map(|(name, text)| {
        let is_it = text.contains(&format!("\"pid\":{pid},"));
        is_it.then(|| name.split('-').next().unwrap().to_owned())
    });
    found.unwrap_or_else(|| panic!("no journal of process {pid}"))
}

fn journals() -> Vec<(String, String)> {
    let mut journals = Vec::new();
    for entry in fs::read_dir("/run/katamaran")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".journal") {
            journals.push((name, fs::read_to_string(entry.path()).unwrap_or_default()));
        }
    }
    journals
}

fn journal(session: &str, role: &str) -> PathBuf {
    PathBuf::from(format!("/run/katamaran/{session}-{role}.journal"))
}

/// Kills a side as soon as its journal says `record`, and returns the session.
fn kill_at(migration: &mut Migration<'_>, role: Role, record: &str) -> String {
    let session = look_until_written(migration, role, record);
    migration.side(role).process().kill();
    session
}

/// Waits until a side's journal says `record`, and returns the session.
fn look_until_written(migration: &mut Migration<'_>, role: Role, record: &str) -> String {
    migration
        .look_until_logged(Role::Source, "both nodes are ready")
        .unwrap();
    let session = session_of(migration.source.process().pid());
    let path = match role {
        Role::Source => journal(&session, "source"),
        Role::Dest => journal(&session, "destination"),
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !has_written(&path, record) {
        assert!(Instant::now() < end, "{}", migration.said());
        std::thread::sleep(Duration::from_micros(100));
    }
    session
}

fn has_written(journal: &Path, record: &str) -> bool {
    let text = fs::read_to_string(journal).unwrap();
    text.contains(&format!("\"record\":\"{record}\""))
}

/// Has the operator settle on the destination that the VM runs there. Returns what the source is to be told.
fn settle_that_it_runs(stage: &Stage, session: &str) -> String {
    let (mut exit, mut told) = katamaran(stage, Node::B, &["resolve", session]);
    if exit == Some(4) {
        assert!(told.contains("--discard"), "{told}");
        (exit, told) = katamaran(stage, Node::B, &["resolve", session, "--run"]);
    }
    assert_eq!(exit, Some(0), "{told}");
    receipt_in(&told)
}

/// What `resolve` on the destination says.
fn receipt_in(told: &str) -> String {
    let mut words = told.split_whitespace();
    words.find(|word| word.starts_with("--destination-"));
    words.next().unwrap().to_owned()
}

fn status(stage: &mut Stage) -> String {
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    status["status"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_source_left_that_was_killed_during_the_copy_is_told_and_removed() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let before = Snapshot::take(Scope::NamespacesOnly, stage.nodes()).unwrap();
    let mut migration = begin(&mut stage, &["--max-bandwidth=25M"]);
    migration
        .look_until_logged(Role::Source, "RAM: pass 1")
        .unwrap();
    let session = session_of(migration.source.process().pid());

    let apply = ["cleanup", "--apply", "--session", &session];
    let (exit, told) = katamaran(migration.stage, Node::A, &apply);
    assert_eq!(exit, Some(0), "{told}");
    assert_eq!(told.matches("living: left alone").count(), 2, "{told}");
    let (exit, told) = katamaran(migration.stage, Node::A, &["status"]);
    assert_eq!(exit, Some(0), "{told}");
    assert!(told.contains(&format!("{session} source living")), "{told}");
    assert!(told.contains("phase copy RAM"), "{told}");

    migration.source.process().kill();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.dest.status, Some(1), "{}", both(&ended));
    let (exit, told) = katamaran(&stage, Node::A, &["cleanup", "--session", &session]);
    assert_eq!(exit, Some(5), "{told}");
    assert!(told.contains("would take the programs off"), "{told}");
    assert!(told.contains("nothing was changed"), "{told}");

    // The next migration does the same by itself. There is no destination to go on with.
    let mut next = KatamaranProcess::start(&stage, Role::Source, &["--log-level=info"]).unwrap();
    next.process().wait_until(Instant::now() + SOON).unwrap();
    let next = next.result().unwrap();
    assert_eq!(next.status, Some(2), "{}", next.stdout);
    assert!(next.stderr.contains(&session), "{}", next.stderr);
    assert!(next.stderr.contains("had left"), "{}", next.stderr);
    assert_eq!(session_files(&session), Vec::<String>::new());
    let soon = Instant::now() + SOON;
    before
        .wait_until_restored(Scope::NamespacesOnly, stage.nodes(), soon)
        .unwrap();
    let (_, told) = katamaran(&stage, Node::A, &["cleanup", "--session", &session]);
    assert!(told.contains("nothing is left"), "{told}");
    assert_eq!(status(&mut stage), "running");
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None);
    assert!(client.is_perfect(), "{client:?}");
}

#[test]
fn a_vm_that_a_killed_source_had_stopped_runs_again_once_it_is_known_that_no_other_does() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let mut migration = begin(&mut stage, &[]);
    let session = kill_at(&mut migration, Role::Source, "stopping");
    let (ended, _) = migration.end().unwrap();
    // As if it had died a moment later, between writing down that it sends COMMIT and sending it.
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(journal(&session, "source"))
        .unwrap();
    file.write_all(b"{\"at_us\":1,\"record\":\"commit-sent\"}\n")
        .unwrap();
    drop(file);
    let stopped = status(&mut stage);

    let apply = ["cleanup", "--apply", "--session", &session];
    let (exit, told) = katamaran(&stage, Node::A, &["status"]);
    assert!(
        told.contains(&format!("{session} source undecided")),
        "{told}"
    );
    assert_eq!(exit, Some(0), "{told}");
    let (exit, told) = katamaran(&stage, Node::A, &["resolve", &session]);
    assert_eq!(exit, Some(4), "{told}");
    assert!(told.contains("On the destination run"), "{told}");
    let wrong = ["resolve", &session, "--destination-discarded", "d0000"];
    let (exit, told) = katamaran(&stage, Node::A, &wrong);
    assert_eq!(exit, Some(2), "{told}");
    assert!(told.contains("not the receipt"), "{told}");
    assert_eq!(status(&mut stage), stopped);

    let (exit, told) = katamaran(&stage, Node::B, &["resolve", &session]);
    assert_eq!(exit, Some(0), "{told}");
    let receipt = receipt_in(&told);
    assert!(ended.dest.stdout.contains(&receipt), "{}", both(&ended));
    let answer = ["resolve", &session, "--destination-discarded", &receipt];
    let (exit, told) = katamaran(&stage, Node::A, &answer);
    assert_eq!(exit, Some(0), "{told}");
    assert_eq!(status(&mut stage), "running", "{told}");
    assert_eq!(session_files(&session), Vec::<String>::new(), "{told}");
    let (exit, told) = katamaran(&stage, Node::A, &apply);
    assert_eq!(exit, Some(0), "{told}");
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.is_perfect(), "{client:?}");
}

/// It has redirected for some time, to a destination that is given up; copies are with its programs.
#[test]
fn what_a_killed_source_had_redirected_reaches_the_vm_when_it_goes_on() {
    require!(Root, Bpf, Lab);
    for wiring in [Wiring::Tap, Wiring::Pod] {
        let mut options = StageOptions::new(QemuVersion::V10_0, 2000);
        options.lab.wiring = wiring;
        let mut stage = Stage::set(options).unwrap();
        let mut migration = begin(&mut stage, &[]);
        let session = kill_at(&mut migration, Role::Source, "stopping");
        let (ended, _) = migration.end().unwrap();
        assert_eq!(ended.dest.status, Some(1), "{}", both(&ended));
        let cleanup = ["cleanup", "--session", &session];
        let (_, told) = katamaran(&stage, Node::A, &cleanup);
        assert!(told.contains("put the packets into the VM's tap"), "{told}");
        let apply = ["cleanup", "--apply", "--session", &session];
        let (exit, told) = katamaran(&stage, Node::A, &apply);
        assert_eq!(exit, Some(0), "{told}");
        assert_eq!(status(&mut stage), "running", "{told}");
        assert_eq!(session_files(&session), Vec::<String>::new(), "{told}");
        let (client, _) = stage.finish_traffic().unwrap();
        assert!(client.is_perfect(), "{wiring:?} {client:?} {told}");
    }
}

/// The source's own copies stand in for what a destination had that is gone.
#[test]
fn what_a_killed_destination_held_is_not_missed() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions::new(QemuVersion::V10_0, 2000)).unwrap();
    let mut migration = begin(&mut stage, &[]);
    look_until_written(&mut migration, Role::Source, "stopping");
    migration.dest.process().kill();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(1), "{}", both(&ended));
    let report = report(&ended.source);
    let returned = &report["returned"];
    assert!(
        returned["from_copies"].as_u64() > Some(0),
        "{}",
        both(&ended)
    );
    assert_eq!(
        returned["returned"],
        returned["redirected"],
        "{}",
        both(&ended)
    );
    assert_eq!(status(&mut stage), "running", "{}", both(&ended));
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.is_perfect(), "{client:?}");
}

#[test]
fn a_source_that_was_killed_before_it_heard_that_the_vm_runs_gives_its_copy_up_for_a_receipt() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let mut migration = begin(&mut stage, &[]);
    let session = kill_at(&mut migration, Role::Source, "running");
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.dest.status, Some(0), "{}", both(&ended));
    // As if it had died a moment earlier.
    let path = journal(&session, "source");
    let text = fs::read_to_string(&path).unwrap();
    let end = text.find("\"record\":\"commit-sent\"").unwrap();
    let line = end + text[end..].find('\n').unwrap() + 1;
    fs::write(&path, &text[..line]).unwrap();

    let (exit, told) = katamaran(
        &stage,
        Node::A,
        &["cleanup", "--apply", "--session", &session],
    );
    assert_eq!(exit, Some(5), "{told}");
    assert!(told.contains("undecided: left alone"), "{told}");
    let discard = ["resolve", &session, "--discard"];
    assert_eq!(katamaran(&stage, Node::B, &discard).0, Some(2));
    let (exit, told) = katamaran(&stage, Node::B, &["resolve", &session]);
    assert_eq!(exit, Some(0), "{told}");
    assert!(told.contains("the VM runs here"), "{told}");
    let receipt = receipt_in(&told);
    let wrong = ["resolve", &session, "--destination-discarded", &receipt];
    assert_eq!(katamaran(&stage, Node::A, &wrong).0, Some(2));
    let answer = ["resolve", &session, "--destination-runs", &receipt];
    let (exit, told) = katamaran(&stage, Node::A, &answer);
    assert_eq!(exit, Some(0), "{told}");
    assert!(stage.qmp_a.command("query-status", Value::Null).is_err());
    assert_eq!(session_files(&session), Vec::<String>::new(), "{told}");
    let status = stage.qmp_b.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true);
}

#[test]
fn the_tunnels_devices_of_two_sides_that_were_killed_are_removed() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions::new(QemuVersion::StandIn, 300)).unwrap();
    let before = Snapshot::take(Scope::NamespacesOnly, stage.nodes()).unwrap();
    let mut migration = begin(&mut stage, &["--tunnel-mode=vxlan"]);
    let session = kill_at(&mut migration, Role::Source, "migrating");
    migration.dest.process().kill();
    migration.end().unwrap();
    for (node, device) in [(Node::A, "ktms"), (Node::B, "ktmd")] {
        let netns = stage.lab.network().node(node);
        let links = netns.command("ip", &["-br", "link"]).unwrap();
        assert!(links.contains(device), "{links}");
    }
    for node in [Node::A, Node::B] {
        let apply = ["cleanup", "--apply", "--session", &session];
        let (exit, told) = katamaran(&stage, node, &apply);
        assert_eq!(exit, Some(0), "{told}");
    }
    assert_eq!(session_files(&session), Vec::<String>::new());
    let soon = Instant::now() + SOON;
    before
        .wait_until_restored(Scope::NamespacesOnly, stage.nodes(), soon)
        .unwrap();
    assert_eq!(status(&mut stage), "running");
}

/// Between two steps of the destination, so that any of several things may have happened: all of them end with one VM.
#[test]
fn whatever_a_destination_that_was_killed_at_commit_had_done_one_vm_runs_in_the_end() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let mut migration = begin(&mut stage, &[]);
    let session = kill_at(&mut migration, Role::Dest, "commit-received");
    let (ended, _) = migration.end().unwrap();
    if ended.source.status == Some(4) {
        let told = &ended.source.stdout;
        assert!(
            told.contains(&format!("katamaran resolve {session}")),
            "{told}"
        );
        let receipt = settle_that_it_runs(&stage, &session);
        let answer = ["resolve", &session, "--destination-runs", &receipt];
        let (exit, told) = katamaran(&stage, Node::A, &answer);
        assert_eq!(exit, Some(0), "{told}");
    }
    let apply = ["cleanup", "--apply", "--session", &session];
    let (exit, told) = katamaran(&stage, Node::B, &apply);
    assert_eq!(exit, Some(0), "{told}\n{}", both(&ended));
    assert_eq!(session_files(&session), Vec::<String>::new(), "{told}");
    let status = stage.qmp_b.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(&ended));
    assert!(stage.qmp_a.command("query-status", Value::Null).is_err());
}

/// Nobody is left who looks after the way that packets take to the VM, and the network does not know yet where that is.
#[test]
fn packets_find_a_vm_whose_session_an_operator_settles_while_the_network_sends_them_to_the_source()
{
    require!(Root, Bpf, Lab);
    let (stage, session) = killed_at_commit();
    let receipt = settle_that_it_runs(&stage, &session);
    let answer = ["resolve", &session, "--destination-runs", &receipt];
    std::thread::scope(|scope| {
        let source = scope.spawn(|| katamaran(&stage, Node::A, &answer));
        let path = journal(&session, "source");
        let end = Instant::now() + SOON;
        while !has_written(&path, "running") {
            assert!(Instant::now() < end, "the source does not believe it");
            std::thread::sleep(Duration::from_millis(1));
        }
        stage.lab.converge().unwrap();
        let (exit, told) = source.join().unwrap();
        assert_eq!(exit, Some(0), "{told}");
        assert!(told.contains("wait until the network sends"), "{told}");
        assert!(told.contains("77 s at most"), "{told}");
    });
    let apply = ["cleanup", "--apply", "--session", &session];
    let (exit, told) = katamaran(&stage, Node::B, &apply);
    assert_eq!(exit, Some(0), "{told}");
    assert_eq!(session_files(&session), Vec::<String>::new(), "{told}");
    let mut stage = stage;
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.is_perfect(), "{client:?}");
}

/// A migration whose destination was killed when COMMIT had come to it, so that its source is undecided. (It may have answered
/// first: then another.)
fn killed_at_commit() -> (Stage, String) {
    for _ in 0..20 {
        let mut stage = stage();
        let options = MigrationOptions {
            converge_after: Duration::from_secs(3600),
            source_args: vec!["--cni-convergence-delay".to_owned(), "77".to_owned()],
            ..MigrationOptions::default()
        };
        let mut migration = Migration::begin(&mut stage, &options).unwrap();
        let session = kill_at(&mut migration, Role::Dest, "commit-received");
        let (ended, _) = migration.end().unwrap();
        if ended.source.status == Some(4) {
            return (stage, session);
        }
        let apply = ["cleanup", "--apply", "--session", &session];
        katamaran(&stage, Node::B, &apply);
    }
    panic!("it has always answered");
}
