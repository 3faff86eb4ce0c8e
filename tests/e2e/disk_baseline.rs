//! The order that katamaran does not follow loses acknowledged writes. Were that not to be seen here, a
//! run of katamaran without a loss would say nothing.

use std::time::Duration;

use katamaran_tests::lab::{LabConfig, QemuVersion};
use katamaran_tests::run::{
    DiskLoad, DriveOptions, GoOrderOptions, GoOrderRun, Mishap, StageOptions, Storage, TrafficSpec,
    run_go_order,
};

use crate::support::require;

const MEBIBYTES: u64 = 128;

/// With so few records a second hardly one is pending when V stops.
const SELDOM: u64 = 20;

fn go_order(qemu: QemuVersion, mishap: Mishap) -> GoOrderRun {
    let rate = match mishap {
        Mishap::None => SELDOM,
        Mishap::Backlog { .. } | Mishap::ExportDies => DiskLoad::FLAT_OUT,
    };
    let stage = StageOptions {
        lab: LabConfig {
            qemu,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 100,
            disk: Some(DiskLoad {
                rate,
                blocks: (MEBIBYTES << 20) / 4096,
            }),
            ..TrafficSpec::default()
        },
        storage: Storage::Local(MEBIBYTES),
        drives: DriveOptions {
            count: 1,
            ..DriveOptions::default()
        },
        ..StageOptions::default()
    };
    run_go_order(&GoOrderOptions {
        stage,
        mishap,
        deadline: Duration::from_secs(90),
    })
    .unwrap()
}

/// V runs on B, by what it says itself, and lacks what it was acknowledged.
#[track_caller]
fn assert_lost(run: &GoOrderRun) {
    let disk = run.run.client.disk.as_ref().unwrap();
    let what = format!("{} {:?} {:?}", run.run.summary(), run.status, run.crash);
    assert!(run.run.resume_ns.is_some(), "{what}");
    assert!(disk.lost() > 0, "{what}");
}

/// What the other tests find lost is not lost by the lab. V writes now and then, so something may be
/// pending by chance.
#[test]
fn in_the_other_order_nothing_is_lost_while_nothing_is_pending() {
    const TRIES: usize = 3;
    require!(Root, Lab);
    let mut lost = Vec::new();
    for _ in 0..TRIES {
        let run = go_order(QemuVersion::V10_0, Mishap::None);
        let intact = run.run.client.disk.as_ref().unwrap().is_intact();
        if run.run.resume_ns.is_some() && intact {
            return;
        }
        lost.push(format!("{} {:?}", run.run.summary(), run.crash));
    }
    panic!("each of {TRIES} times: {}", lost.join("\n"));
}

#[test]
fn the_other_order_loses_acknowledged_writes_that_are_pending() {
    require!(Root, Lab);
    let mishap = Mishap::Backlog {
        path: 4_000_000,
        pending: 48 << 20,
    };
    let run = go_order(QemuVersion::V7_2, mishap);
    assert_lost(&run);
    // It is not even a failure that somebody could see in time: V has moved.
    assert!(run.crash.is_some(), "{:?}", run.status);
}

#[test]
fn the_other_order_loses_acknowledged_writes_when_a_mirror_has_died() {
    require!(Root, Lab);
    let run = go_order(QemuVersion::V10_0, Mishap::ExportDies);
    assert_lost(&run);
    assert_eq!(run.status.as_deref(), Some("completed"), "{:?}", run.crash);
}
