//! Whoever watches a migration may go away: it goes on.

use katamaran_tests::lab::QemuVersion;
use katamaran_tests::run::{
    Migration, MigrationOptions, Role, Stage, StageOptions, Stderr, Timeline,
};

use crate::support::{both, report, require};

fn stage(qemu: QemuVersion) -> Stage {
    Stage::set(StageOptions::new(qemu, 500)).unwrap()
}

fn options(source_stderr: Stderr) -> MigrationOptions {
    MigrationOptions {
        source_args: ["--require-zero-drop", "--max-bandwidth=25M"]
            .map(str::to_owned)
            .to_vec(),
        source_stderr,
        ..MigrationOptions::default()
    }
}

/// To the end, which is a good one.
#[track_caller]
fn migrates(migration: Migration<'_>) -> Timeline {
    let (ended, timeline) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    assert_eq!(ended.dest.status, Some(0), "{}", both(&ended));
    assert_eq!(report(&ended.source)["verdict"], "proven");
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    timeline
}

#[test]
fn a_migration_goes_on_when_nobody_reads_what_it_says() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::StandIn);
    let migration = Migration::begin(&mut stage, &options(Stderr::Closed)).unwrap();
    migrates(migration);
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None);
    assert!(client.is_perfect(), "{client:?}");
}

#[test]
fn a_migration_goes_on_when_its_terminal_is_closed() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let mut migration = Migration::begin(&mut stage, &options(Stderr::Terminal)).unwrap();
    // In front of the bar.
    migration
        .look_until_logged(Role::Source, "guest dirties")
        .unwrap();
    migration.source.hang_up().unwrap();
    let timeline = migrates(migration);
    assert!(timeline.resume_ns.is_some());
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None);
    assert!(client.is_perfect(), "{client:?}");
}

#[test]
fn a_migration_goes_on_when_its_terminal_is_stopped() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let mut migration = Migration::begin(&mut stage, &options(Stderr::Terminal)).unwrap();
    migration
        .look_until_logged(Role::Source, "guest dirties")
        .unwrap();
    migration.source.stop_terminal().unwrap();
    migrates(migration);
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None);
    assert!(client.is_perfect(), "{client:?}");
}
