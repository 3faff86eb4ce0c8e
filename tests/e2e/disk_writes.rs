//! V writes to its disks as fast as it can while it moves: what was acknowledged is there.

use katamaran_tests::lab::{LabConfig, QemuVersion};
use katamaran_tests::run::{
    DiskLoad, DriveOptions, MigrationOptions, StageOptions, Storage, TrafficSpec, run_migration,
};

use crate::support::{all, number, report, require, side};

const DRIVES: usize = 3;
const MEBIBYTES: u64 = 32;
const FILLED_MIB: u64 = 8;

/// Three drives, the last quarter of each full of data that V does not touch.
fn stage(qemu: QemuVersion, rate: u64) -> StageOptions {
    StageOptions {
        lab: LabConfig {
            qemu,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 200,
            disk: Some(DiskLoad {
                rate,
                blocks: ((MEBIBYTES - FILLED_MIB) << 20) / 4096,
            }),
            ..TrafficSpec::default()
        },
        storage: Storage::Local(MEBIBYTES),
        drives: DriveOptions {
            count: DRIVES,
            filled_mib: FILLED_MIB,
            ..DriveOptions::default()
        },
        ..StageOptions::default()
    }
}

fn every_acknowledged_write_is_there(qemu: QemuVersion) {
    let run = run_migration(MigrationOptions {
        stage: stage(qemu, DiskLoad::FLAT_OUT),
        ..MigrationOptions::default()
    })
    .unwrap();
    for side in [side(&run.source), side(&run.dest)] {
        assert_eq!(side.status, Some(0), "{}", all(&run));
    }
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    let disk = run.client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{disk:?}\n{}", all(&run));
    assert_eq!(disk.drives.len(), DRIVES);
    // On both sides of the switch something was acknowledged, on every drive.
    let (stop_ns, resume_ns) = (run.stop_ns.unwrap(), run.resume_ns.unwrap());
    for drive in &disk.drives {
        let heard = |from_ns: u64, to_ns: u64| {
            let within = |at_ns: u64| (from_ns..to_ns).contains(&at_ns);
            drive.acks.heard.iter().any(|(_, at_ns)| within(*at_ns))
        };
        assert!(
            heard(0, stop_ns) && heard(resume_ns, u64::MAX),
            "{}",
            all(&run)
        );
    }
    let report = report(side(&run.source));
    for drive in 0..DRIVES {
        let backlog = number(report, &format!("/disks/{drive}/backlog_at_commit"));
        assert_eq!(backlog, 0.0, "{report:#}");
    }
}

#[test]
fn every_acknowledged_write_to_three_drives_is_there_after_the_switch() {
    require!(Root, Bpf, Lab);
    every_acknowledged_write_is_there(QemuVersion::V10_0);
}

#[test]
fn every_acknowledged_write_to_three_drives_is_there_after_the_switch_of_an_old_qemu() {
    require!(Root, Bpf, Lab);
    every_acknowledged_write_is_there(QemuVersion::V7_2);
}
