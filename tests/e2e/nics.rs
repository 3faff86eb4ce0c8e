//! A VM with two network cards: one migration moves both, and the account of each balances.

use katamaran_tests::lab::{GUEST_V4, GUEST_V6, LabConfig, QemuVersion, Wiring};
use katamaran_tests::run::{
    Migration, MigrationOptions, Role, Stage, StageOptions, TrafficSpec, run_migration, settle,
};
use nix::sys::signal::Signal;

use crate::perfect::assert_perfect;
use crate::support::{all, both, number, report, require, side};

/// The path between the nodes, and what V writes to its memory, for a pause of some hundred ms.
const PATH_BYTES_PER_SECOND: u64 = 20_000_000;
const DIRTY: (u64, u64) = (30, 16);
const CONTROL_PORT: u16 = 7482;

fn stage(qemu: QemuVersion, wiring: Wiring) -> StageOptions {
    StageOptions {
        lab: LabConfig {
            qemu,
            wiring,
            second_nic: true,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 1000,
            pps_v6: 500,
            pps_second: 500,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    }
}

fn moves(qemu: QemuVersion, wiring: Wiring, tunnel: &str) {
    let run = run_migration(MigrationOptions {
        stage: stage(qemu, wiring),
        source_args: vec![format!("--tunnel-mode={tunnel}")],
        ..MigrationOptions::default()
    })
    .unwrap();
    assert_perfect(&run);
    let source = report(side(&run.source));
    let nics = source["nics"].as_array().unwrap();
    let taps: Vec<_> = nics
        .iter()
        .map(|nic| nic["tap"].as_str().unwrap())
        .collect();
    assert_eq!(taps, [wiring.tap(), &wiring.second().tap], "{}", all(&run));
    for nic in nics {
        assert_eq!(nic["verdict"], "proven", "{}", all(&run));
        assert_eq!(nic["addresses"].as_array().unwrap().len(), 2);
        for counted in ["s2", "s3", "d1", "d2"] {
            let packets = number(nic, &format!("/ledger/{counted}/packets"));
            assert!(packets > 0.0, "{counted}: {}", all(&run));
        }
    }
    // The whole is what its parts are.
    for counted in ["s1", "s3", "d3"] {
        let pointer = format!("/ledger/{counted}/packets");
        let sum: f64 = nics.iter().map(|nic| number(nic, &pointer)).sum();
        assert!(
            (number(source, &pointer) - sum).abs() < 0.5,
            "{counted}: {}",
            all(&run)
        );
    }
}

#[test]
fn both_cards_of_a_vm_move_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    moves(QemuVersion::V10_0, Wiring::Tap, "ipip");
}

#[test]
fn both_cards_of_a_vm_on_an_old_qemu_move_through_a_tunnel_device_each_with_nothing_lost_and_proof()
{
    require!(Root, Bpf, Lab);
    moves(QemuVersion::V7_2, Wiring::Tap, "vxlan");
}

#[test]
fn both_cards_of_a_vm_in_a_pod_with_two_interfaces_move_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    moves(QemuVersion::V10_0, Wiring::Pod, "vxlan");
}

#[test]
fn what_was_redirected_for_both_cards_is_back_when_a_migration_is_cancelled() {
    require!(Root, Bpf, Lab);
    let mut options = stage(QemuVersion::V10_0, Wiring::Tap);
    options.lab.dirty = Some(DIRTY);
    let mut stage = Stage::set(options).unwrap();
    stage
        .lab
        .slow_path_to_b(CONTROL_PORT, PATH_BYTES_PER_SECOND)
        .unwrap();
    let long_pause = MigrationOptions {
        source_args: vec!["--downtime=3000".to_owned()],
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &long_pause).unwrap();
    migration
        .look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })
        .unwrap();
    let source = migration.side(Role::Source).process();
    source.signal(Signal::SIGINT).unwrap();
    let (ended, timeline) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(130), "{}", both(&ended));
    let run = settle(&mut stage, ended, &timeline).unwrap();
    assert!(run.client.is_perfect(), "{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    let source = report(side(&run.source));
    let [redirected, returned] =
        ["redirected", "returned"].map(|count| number(source, &format!("/returned/{count}")));
    assert!(redirected > 0.0, "{}", all(&run));
    assert!(redirected <= returned, "{}", all(&run));
}

#[test]
fn a_card_without_an_address_is_refused_with_what_to_do_and_nothing_is_touched() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(stage(QemuVersion::V10_0, Wiring::Tap)).unwrap();
    let first_only = MigrationOptions {
        source_args: vec![format!("--vm-ip={GUEST_V4},{GUEST_V6}")],
        ..MigrationOptions::default()
    };
    let ended = Migration::begin(&mut stage, &first_only)
        .unwrap()
        .end()
        .unwrap()
        .0;
    assert_eq!(ended.source.status, Some(2), "{}", both(&ended));
    let said = format!("{}{}", ended.source.stdout, ended.source.stderr);
    let tap = Wiring::Tap.second().tap;
    assert!(
        said.contains(&format!("behind {tap}")) && said.contains("--vm-ip"),
        "{said}"
    );
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.is_perfect(), "{client:?} {}", both(&ended));
}
