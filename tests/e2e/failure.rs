//! What the VM depends on dies during the copy: it goes on where it is, and the message says what failed.

use std::time::{Duration, Instant};

use katamaran_tests::lab::{LabConfig, QemuVersion};
use katamaran_tests::leak::{Scope, Snapshot};
use katamaran_tests::run::{
    Ended, Migration, MigrationOptions, Role, Stage, StageOptions, TrafficSpec,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    assert_clean_but_for_the_dead_destination, both, clean_up_after_the_dead_destination, report,
    require,
};

fn stage() -> Stage {
    Stage::set(StageOptions {
        traffic: TrafficSpec {
            pps_v4: 500,
            pps_v6: 200,
            tcp_v4: Some(100_000),
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap()
}

/// Begins a migration whose copy takes some seconds, and looks until it is on its way.
fn copying(stage: &mut Stage) -> Migration<'_> {
    let options = MigrationOptions {
        source_args: vec!["--max-bandwidth=25M".to_owned()],
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(stage, &options).unwrap();
    migration
        .look_until_logged(Role::Source, "RAM: pass 1")
        .unwrap();
    migration
}

/// The source gave up with exit 1 and named each of `words`; the VM runs on A and nothing was lost.
#[track_caller]
fn assert_went_on(mut stage: Stage, ended: &Ended, words: &[&str]) {
    assert_eq!(ended.source.status, Some(1), "{}", both(ended));
    let told = report(&ended.source);
    assert_eq!(told["outcome"], "failed", "{}", both(ended));
    let error = told["error"].as_str().unwrap();
    for word in words.iter().chain(&["runs on the source"]) {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
        assert!(ended.source.stdout.contains(word), "{}", both(ended));
    }
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(ended));
    assert!(client.is_perfect(), "{client:?}\n{}", both(ended));
}

#[test]
fn the_vm_goes_on_when_the_destinations_qemu_is_killed_during_the_copy() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let migration = copying(&mut stage);
    migration.stage.guest_b.process().kill();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.dest.status, Some(1), "{}", both(&ended));
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    assert_went_on(stage, &ended, &["destination's QEMU"]);
}

#[test]
fn the_vm_goes_on_when_the_destinations_katamaran_is_killed_during_the_copy() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let before = Snapshot::take(Scope::NamespacesOnly, stage.nodes()).unwrap();
    let mut migration = copying(&mut stage);
    migration.dest.process().kill();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.dest.status, None, "{}", both(&ended));
    assert_clean_but_for_the_dead_destination(&stage, &ended);
    clean_up_after_the_dead_destination(&stage, &ended);
    let soon = Instant::now() + Duration::from_secs(5);
    before
        .wait_until_restored(Scope::NamespacesOnly, stage.nodes(), soon)
        .unwrap();
    assert_went_on(stage, &ended, &["session", "destination"]);
}

#[test]
fn the_vm_goes_on_when_the_network_between_the_nodes_goes_silent_during_the_copy() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let migration = copying(&mut stage);
    let lab = &migration.stage.lab;
    lab.drop_in_fabric("tcp dport 7482").unwrap();
    lab.drop_in_fabric("tcp sport 7482").unwrap();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.dest.status, Some(1), "{}", both(&ended));
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    assert_went_on(stage, &ended, &["session"]);
}

#[test]
fn a_vm_that_stands_still_for_longer_than_allowed_goes_on_with_its_packets() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions {
        lab: LabConfig {
            qemu: QemuVersion::V10_0,
            dirty: Some((30, 16)),
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 500,
            pps_v6: 200,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    // Some hundred milliseconds of V's memory are left when it is stopped.
    stage.lab.slow_path_to_b(7482, 20_000_000).unwrap();
    let options = MigrationOptions {
        source_args: ["--downtime=3000", "--pause-limit=3000"]
            .map(str::to_owned)
            .to_vec(),
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })
        .unwrap();
    let stalled = migration.stage.guest_b.process();
    stalled.signal(Signal::SIGSTOP).unwrap();
    migration
        .look_until_logged(Role::Source, "phase=\"undo\"")
        .unwrap();
    let stalled = migration.stage.guest_b.process();
    stalled.signal(Signal::SIGCONT).unwrap();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(1), "{}", both(&ended));
    let told = report(&ended.source);
    assert_eq!(told["outcome"], "timeout", "{}", both(&ended));
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("3000 ms (--pause-limit)"), "{error}");
    assert!(told["returned"]["redirected"].as_u64() > Some(0), "{told}");
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(&ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    assert!(client.is_perfect(), "{client:?}\n{}", both(&ended));
}
