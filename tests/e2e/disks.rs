//! A VM with a disk of its own moves: every write that it was acknowledged is on the destination's disk.

use std::os::unix::fs::MetadataExt as _;

use katamaran_tests::lab::{QemuVersion, Start};
use katamaran_tests::run::{
    Destination, DiskLoad, Migration, MigrationOptions, MigrationRun, Stage, StageOptions, Storage,
    TrafficSpec, run_migration, run_migration_on,
};
use serde_json::Value;

use crate::support::{all, both, number, report, require, side};

const DISK_MIB: u64 = 64;

fn options(qemu: QemuVersion) -> MigrationOptions {
    let mut stage = StageOptions::new(qemu, 300);
    stage.storage = Storage::Local(DISK_MIB);
    stage.traffic = TrafficSpec {
        disk: Some(DiskLoad {
            rate: 200,
            blocks: 1024,
        }),
        ..stage.traffic
    };
    MigrationOptions {
        stage,
        ..MigrationOptions::default()
    }
}

/// Migrated, with nothing lost on the network or on the disk, nothing left behind, and the figures of the
/// one disk.
#[track_caller]
fn assert_moved(run: &MigrationRun) -> &Value {
    for side in [side(&run.source), side(&run.dest)] {
        assert_eq!(side.status, Some(0), "{}", all(run));
    }
    assert!(run.client.is_perfect(), "{}", all(run));
    let disk = run.client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{disk:?}\n{}", all(run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(run));
    let report = report(side(&run.source));
    assert_eq!(report["verdict"], "proven", "{}", all(run));
    let disks = report["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 1, "{report:#}");
    assert_eq!(disks[0]["id"], "drive-virtio-disk0", "{report:#}");
    assert_eq!(disks[0]["mode"], "write-blocking", "{report:#}");
    assert_eq!(number(&disks[0], "/size"), (DISK_MIB << 20) as f64);
    assert!(
        number(&disks[0], "/copied") >= (DISK_MIB << 20) as f64,
        "{report:#}"
    );
    assert_eq!(number(&disks[0], "/backlog_at_commit"), 0.0, "{report:#}");
    &disks[0]
}

#[test]
fn a_vm_with_a_disk_moves_and_no_acknowledged_write_is_lost() {
    require!(Root, Bpf, Lab);
    let run = run_migration(options(QemuVersion::V10_0)).unwrap();
    let disk = assert_moved(&run);
    assert_eq!(disk["verified"], Value::Null);
}

#[test]
fn a_vm_with_a_disk_on_an_old_qemu_moves_and_no_acknowledged_write_is_lost() {
    require!(Root, Bpf, Lab);
    let run = run_migration(options(QemuVersion::V7_2)).unwrap();
    assert_moved(&run);
}

#[test]
fn both_disks_are_compared_before_the_vm_runs_on_the_other_node() {
    require!(Root, Bpf, Lab);
    for qemu in [QemuVersion::V10_0, QemuVersion::V7_2] {
        let mut options = options(qemu);
        options.source_args.push("--verify-storage".to_owned());
        // A destination that would run the VM by itself.
        options.stage.incoming = Start::IncomingRun;
        let run = run_migration(options).unwrap();
        let disk = assert_moved(&run);
        assert_eq!(disk["verified"], true, "{}", all(&run));
    }
}

#[test]
fn a_disk_keeps_its_holes_over_whatever_was_there() {
    require!(Root, Bpf, Lab);
    for qemu in [QemuVersion::V10_0, QemuVersion::V7_2] {
        let mut options = options(qemu);
        options.stage.drives.filled_mib = 16;
        options.stage.drives.destination = Destination::Full;
        // Drives that unmap.
        options.stage.lab.named_drives = true;
        let mut stage = Stage::set(options.stage.clone()).unwrap();
        let run = run_migration_on(&mut stage, &options).unwrap();
        assert_moved(&run);
        // The 16 MiB, what V wrote, and what the file system rounds up to.
        let [_, b] = &stage.drives[0];
        let taken = b.metadata().unwrap().blocks() * 512;
        assert!(
            taken <= (16 + 4 + 8) << 20,
            "{qemu}: {taken} bytes of {} MiB on B's disk",
            DISK_MIB
        );
    }
}

#[test]
fn the_copy_keeps_to_its_limit_and_the_guests_writes_do_not() {
    require!(Root, Bpf, Lab);
    let mut options = options(QemuVersion::V10_0);
    for flag in ["--bandwidth=16M", "--drive-id=virtio-disk0"] {
        options.source_args.push(flag.to_owned());
    }
    // An empty disk would be copied in no time.
    options.stage.drives.filled_mib = 48;
    let mut stage = Stage::set(options.stage.clone()).unwrap();
    let mut run = run_migration_on(&mut stage, &options).unwrap();
    let source = run.source.as_mut().unwrap();
    let disk = &mut source.report.as_mut().unwrap()["disks"][0];
    assert_eq!(disk["id"], "virtio-disk0", "by the device's name");
    disk["id"] = "drive-virtio-disk0".into();
    let seconds = number(disk, "/seconds");
    assert_moved(&run);
    // 48 MiB at 16 MiB/s; the first slice goes at once.
    assert!((2.0..=20.0).contains(&seconds), "{seconds} s");
    let told = &side(&run.source).stderr;
    assert!(told.contains("percent="), "no progress in:\n{told}");
}

#[test]
fn what_can_not_be_mirrored_is_refused_and_the_next_try_moves() {
    require!(Root, Bpf, Lab);
    let options = options(QemuVersion::V10_0);
    let mut stage = Stage::set(options.stage.clone()).unwrap();
    let mut refused = |source: &str, dest: &str, status: i32, words: &str| {
        let flags = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let options = MigrationOptions {
            source_args: flags(source),
            dest_args: flags(dest),
            ..options.clone()
        };
        let (ended, _) = Migration::begin(&mut stage, &options)
            .unwrap()
            .end()
            .unwrap();
        assert_eq!(ended.source.status, Some(status), "{}", both(&ended));
        let error = report(&ended.source)["error"].as_str().unwrap();
        assert!(error.contains(words), "{words:?} is not in {error:?}");
        assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    };
    refused(
        "--drive-id=nope",
        "",
        2,
        "no drive nope: the VM has drive-virtio-disk0",
    );
    refused("", "--drive-id=virtio-disk0", 2, "give both nodes the same");
    refused("", "--shared-storage", 2, "give it on both nodes");
    let run = run_migration_on(&mut stage, &options).unwrap();
    assert_moved(&run);
}
