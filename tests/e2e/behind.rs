//! A guest that is behind with its packets when they are turned away: the VM is not stopped before it has read them all.

use std::time::{Duration, Instant};

use katamaran_tests::lab::{LabConfig, QemuVersion};
use katamaran_tests::run::{
    Laggard, Migration, MigrationOptions, Stage, StageOptions, TrafficSpec, settle,
};
use nix::sys::signal::Signal;

use crate::support::{all, number, report, require, side};

/// What waits in the tap; no more than the guest's socket has room for.
const BEHIND: u32 = 5000;
/// What a drain takes that finds nothing to wait for, many times over. The guest reads as fast as packets are sent.
const LONG_MS: f64 = 1000.0;

fn drained_to_the_last(qemu: QemuVersion) {
    let mut stage = Stage::set(StageOptions {
        lab: LabConfig {
            qemu,
            // The guest is kept from reading, not from writing: that the copy comes to its end takes a while.
            dirty: Some((10, 8)),
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 2000,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    let options = MigrationOptions {
        source_args: vec!["--downtime=3000".to_owned()],
        ..MigrationOptions::default()
    };
    // It is behind before katamaran looks at the tap for the first time.
    let laggard = Laggard::hold(&mut stage, BEHIND).unwrap();
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })
        .unwrap();
    drop(laggard);
    let (ended, timeline) = migration.end().unwrap();
    let run = settle(&mut stage, ended, &timeline).unwrap();
    for side in [side(&run.source), side(&run.dest)] {
        assert_eq!(report(side)["verdict"], "proven", "{}", all(&run));
        assert_eq!(side.status, Some(0), "{}", all(&run));
    }
    assert_eq!(run.dropped_in_guest(), Some(0), "{}", all(&run));
    // An emulator that is halted again and again loses answers; what reaches V is what is asked for.
    assert_eq!(run.missed_by_guest(), Some(0), "{}", all(&run));
    for udp in run.client.udp() {
        assert_eq!((udp.duplicated, udp.reordered), (0, 0), "{}", all(&run));
    }
    let drained_ms = number(report(side(&run.source)), "/cutover/drained_ms");
    assert!(drained_ms > LONG_MS, "{drained_ms}\n{}", all(&run));
}

#[test]
fn a_guest_that_is_behind_is_waited_for_under_qemu_7_2() {
    require!(Root, Bpf, Lab);
    drained_to_the_last(QemuVersion::V7_2);
}

#[test]
fn a_guest_that_is_behind_is_waited_for_under_qemu_10_0() {
    require!(Root, Bpf, Lab);
    drained_to_the_last(QemuVersion::V10_0);
}

/// A stale neighbour entry fails 8 s after the first packet: what came then was dropped by the destination's kernel.
#[test]
fn a_vm_that_stalls_after_its_arrival_loses_nothing_and_is_not_told_to_have() {
    const STALL: Duration = Duration::from_secs(11);
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions {
        traffic: TrafficSpec {
            pps_v4: 300,
            pps_v6: 300,
            ..TrafficSpec::default()
        },
        ..StageOptions::new(QemuVersion::StandIn, 300)
    })
    .unwrap();
    let options = MigrationOptions::default();
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until("V's resume", |migration| {
            Ok(migration.timeline.resume_ns.is_some())
        })
        .unwrap();
    let stalled = Instant::now();
    let qemu = migration.stage.guest_b.process();
    qemu.signal(Signal::SIGSTOP).unwrap();
    while stalled.elapsed() < STALL {
        migration.look().unwrap();
    }
    let qemu = migration.stage.guest_b.process();
    qemu.signal(Signal::SIGCONT).unwrap();
    let (ended, timeline) = migration.end().unwrap();
    let run = settle(&mut stage, ended, &timeline).unwrap();
    assert!(run.client.is_perfect(), "{}", all(&run));
    for side in [side(&run.source), side(&run.dest)] {
        assert_ne!(report(side)["verdict"], "violated", "{}", all(&run));
        assert_eq!(side.status, Some(0), "{}", all(&run));
    }
}
