//! What a mirror depends on dies: the VM goes on at the source, its disk intact, nothing is left, and the
//! message names the job and the drive.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use katamaran_tests::lab::QemuVersion;
use katamaran_tests::run::{
    DiskLoad, Ended, Migration, MigrationOptions, MigrationRun, Role, Stage, StageOptions, Storage,
    run_migration_on,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    all, assert_clean_but_for_the_dead_destination, both, clean_up_after_the_dead_destination,
    report, require,
};

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// While the drive is copied.
    Copying,
    /// While RAM is copied: the mirror is in step, the guest's writes wait for both nodes.
    InStep,
}

const MOMENTS: [Moment; 2] = [Moment::Copying, Moment::InStep];

/// V writes to a disk that takes a while to copy.
fn stage(qemu: QemuVersion) -> Stage {
    let mut options = StageOptions::new(qemu, 300);
    options.storage = Storage::Local(64);
    options.traffic.disk = Some(DiskLoad {
        rate: 100,
        blocks: 256,
    });
    options.drives.filled_mib = 32;
    Stage::set(options).unwrap()
}

/// Begins a migration, and looks until it has come to `moment`.
fn begin(stage: &mut Stage, moment: Moment) -> Migration<'_> {
    let mut flags = vec!["--max-bandwidth=15M".to_owned()];
    if moment == Moment::Copying {
        flags.push("--bandwidth=8M".to_owned());
    }
    let options = MigrationOptions {
        source_args: flags,
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(stage, &options).unwrap();
    let (role, text) = match moment {
        Moment::Copying => (
            Role::Source,
            "disk: copying drive=\"drive-virtio-disk0\" percent=5",
        ),
        Moment::InStep => (Role::Source, "RAM: pass 1"),
    };
    let reached = |migration: &mut Migration<'_>| {
        let told = migration.side(role).stderr();
        Ok(match moment {
            Moment::Copying => told.matches("disk: copying").count() > 1,
            Moment::InStep => told.contains(text),
        })
    };
    migration.look_until(text, reached).unwrap();
    migration
}

/// The source gave up with `status` and named each of `words`; V runs on A, nothing was lost on the way or on
/// the disk, and QEMU there has no job and no node of ours left.
#[track_caller]
fn assert_went_on(mut stage: Stage, ended: &Ended, status: i32, words: &[&str]) {
    assert_eq!(ended.source.status, Some(status), "{}", both(ended));
    let error = report(&ended.source)["error"].as_str().unwrap().to_owned();
    for word in words {
        assert!(
            error.contains(word),
            "{word:?} is not in {error:?}\n{}",
            both(ended)
        );
    }
    let mut ask = |command: &str| stage.qmp_a.command(command, Value::Null).unwrap();
    assert_eq!(ask("query-status")["running"], true, "{}", both(ended));
    assert_eq!(
        ask("query-block-jobs"),
        serde_json::json!([]),
        "{}",
        both(ended)
    );
    let nodes = ask("query-named-block-nodes").to_string();
    assert!(
        !nodes.contains(r#""node-name":"katamaran"#),
        "{nodes}\n{}",
        both(ended)
    );
    let switches = ask("query-migrate-capabilities");
    let pauses = switches
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["capability"] == "pause-before-switchover" && c["state"] == true);
    assert!(!pauses, "{}", both(ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(ended));
    // Packets that were held come back, but some may come after newer ones.
    let copies: u64 = client.udp().map(|udp| udp.duplicated).sum();
    assert_eq!((client.lost(), copies), (0, 0), "{}", both(ended));
    let disk = client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{disk:?}\n{}", both(ended));
}

/// Tries once more, undisturbed: V moves, and its disk has all that it wrote.
#[track_caller]
fn moves_at_the_next_try(stage: &mut Stage) -> MigrationRun {
    let run = run_migration_on(stage, &MigrationOptions::default()).unwrap();
    assert_eq!(
        run.source.as_ref().unwrap().status,
        Some(0),
        "{}",
        all(&run)
    );
    let disk = run.client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{}", all(&run));
    run
}

#[test]
fn the_vm_and_its_disk_go_on_when_the_destinations_qemu_dies() {
    require!(Root, Bpf, Lab);
    for (moment, qemu) in MOMENTS
        .into_iter()
        .zip([QemuVersion::V10_0, QemuVersion::V7_2])
    {
        let mut stage = stage(qemu);
        let migration = begin(&mut stage, moment);
        migration.stage.guest_b.process().kill();
        let (ended, _) = migration.end().unwrap();
        assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
        assert_went_on(stage, &ended, 1, &["destination's QEMU"]);
    }
}

#[test]
fn the_vm_and_its_disk_go_on_when_the_network_between_the_nodes_goes_silent() {
    require!(Root, Bpf, Lab);
    for (moment, qemu) in MOMENTS
        .into_iter()
        .zip([QemuVersion::V7_2, QemuVersion::V10_0])
    {
        let mut stage = stage(qemu);
        let migration = begin(&mut stage, moment);
        let lab = &migration.stage.lab;
        lab.drop_in_fabric("tcp dport 7482").unwrap();
        lab.drop_in_fabric("tcp sport 7482").unwrap();
        let (ended, _) = migration.end().unwrap();
        assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
        assert_went_on(stage, &ended, 1, &["session"]);
    }
}

#[test]
fn a_signal_at_either_side_leaves_no_job_and_no_export() {
    require!(Root, Bpf, Lab);
    for (moment, role) in MOMENTS.into_iter().zip([Role::Source, Role::Dest]) {
        let mut stage = stage(QemuVersion::V10_0);
        let mut migration = begin(&mut stage, moment);
        migration
            .side(role)
            .process()
            .signal(Signal::SIGINT)
            .unwrap();
        let (ended, _) = migration.end().unwrap();
        assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
        if moment == Moment::Copying {
            // Nothing was received: it waits as before for the next try, without our server.
            let exports = stage
                .qmp_b
                .command("query-block-exports", Value::Null)
                .unwrap();
            assert_eq!(exports, serde_json::json!([]), "{}", both(&ended));
            let stopped = stage.qmp_b.command("nbd-server-stop", Value::Null);
            assert!(stopped.is_err(), "a server is left\n{}", both(&ended));
        }
        let status = if role == Role::Source { 130 } else { 1 };
        assert_went_on(stage, &ended, status, &["interrupted"]);
    }
}

#[test]
fn a_second_try_after_an_interrupted_one_mirrors_and_moves() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let mut migration = begin(&mut stage, Moment::Copying);
    migration.source.process().signal(Signal::SIGINT).unwrap();
    migration.end().unwrap();
    // What a run that was killed would leave: a server, and nobody who uses it.
    let address = serde_json::json!({
        "addr": {"type": "unix", "data": {"path": stage.lab.dir().join("stale")}}
    });
    stage.qmp_b.command("nbd-server-start", address).unwrap();
    let run = moves_at_the_next_try(&mut stage);
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    let told = &run.dest.as_ref().unwrap().stderr;
    assert!(told.contains("an earlier run had left"), "{}", all(&run));
}

#[test]
fn the_vm_goes_on_when_the_destinations_katamaran_is_killed() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let mut migration = begin(&mut stage, Moment::InStep);
    migration.dest.process().kill();
    let (ended, _) = migration.end().unwrap();
    assert_clean_but_for_the_dead_destination(&stage, &ended);
    clean_up_after_the_dead_destination(&stage, &ended);
    assert_went_on(stage, &ended, 1, &["session", "destination"]);
}

#[test]
fn a_path_that_dies_under_a_mirror_in_step_fails_the_migration_loudly() {
    require!(Root, Bpf, Lab);
    for qemu in [QemuVersion::V10_0, QemuVersion::V7_2] {
        let mut stage = stage(qemu);
        let migration = begin(&mut stage, Moment::InStep);
        // The session and the stream of RAM live on.
        let export = serde_json::json!({"id": "katamaran-drive-virtio-disk0", "mode": "hard"});
        migration
            .stage
            .qmp_b
            .command("block-export-del", export)
            .unwrap();
        let (ended, _) = migration.end().unwrap();
        assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
        let words = [
            "block job katamaran-drive-virtio-disk0 of drive drive-virtio-disk0",
            "path to the destination's drive broke",
            "runs on the source",
        ];
        assert_went_on(stage, &ended, 1, &words);
    }
}

#[test]
fn a_difference_that_is_found_with_the_vm_stopped_is_told_and_the_vm_goes_on() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let options = MigrationOptions {
        source_args: ["--max-bandwidth=15M", "--verify-storage"]
            .map(str::to_owned)
            .to_vec(),
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until_logged(Role::Source, "RAM: pass 1")
        .unwrap();
    // Somebody writes to the destination's image behind QEMU's back.
    let image = File::options()
        .write(true)
        .open(&migration.stage.drives[0][1])
        .unwrap();
    image.write_all_at(b"x", (50 << 20) + 5).unwrap();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    let words = [
        "drive-virtio-disk0 is not the same on both nodes",
        "1 blocks of 1 MiB differ, at offsets 52428800;",
    ];
    assert_went_on(stage, &ended, 1, &words);
}

#[test]
fn what_a_killed_source_leaves_in_its_qemu_is_removed_by_the_next_try() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let mut migration = begin(&mut stage, Moment::Copying);
    migration.source.process().kill();
    migration.end().unwrap();
    let jobs = stage
        .qmp_a
        .command("query-block-jobs", Value::Null)
        .unwrap();
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
    moves_at_the_next_try(&mut stage);
}
