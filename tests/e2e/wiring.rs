//! The same migration on each way that a VM hangs on its nodes: nothing lost, proof, and the node's wiring as it was.

use katamaran_tests::lab::{LabConfig, POD_TAP, POD_VETH, QemuVersion, Wiring};
use katamaran_tests::run::{
    MigrationOptions, MigrationRun, StageOptions, TrafficSpec, run_migration,
};

use crate::perfect::assert_perfect;
use crate::support::{all, number, report, require, side};

fn options(wiring: Wiring) -> MigrationOptions {
    let required = "--require-zero-drop".to_owned();
    MigrationOptions {
        stage: StageOptions {
            lab: LabConfig {
                qemu: QemuVersion::V10_0,
                wiring,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: 500,
                pps_v6: 200,
                tcp_v4: Some(200_000),
                tcp_v6: Some(100_000),
                ..TrafficSpec::default()
            },
            ..StageOptions::default()
        },
        source_args: vec![required.clone()],
        dest_args: vec![required],
        ..MigrationOptions::default()
    }
}

/// Migrates, and expects the best. The node's filters and qdiscs are part of what is compared for leaks.
#[track_caller]
fn migrate(wiring: Wiring) -> MigrationRun {
    let run = run_migration(options(wiring)).unwrap();
    assert_perfect(&run);
    // All that arrived at either node was for the VM to read.
    let report = report(side(&run.source));
    let told = |pointer: &str| number(report, pointer);
    assert!(told("/ledger/d2/packets") > 0.0, "{}", all(&run));
    run
}

#[test]
fn a_vm_in_a_kata_pod_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    let run = migrate(Wiring::Pod);
    let said = &side(&run.source).stderr;
    assert!(said.contains(POD_TAP) && said.contains(POD_VETH), "{said}");
}

#[test]
fn a_vm_in_a_kata_pod_on_a_bridge_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    migrate(Wiring::PodBridge);
}

#[test]
fn a_vm_whose_tap_is_on_a_bridge_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    migrate(Wiring::Bridge);
}
