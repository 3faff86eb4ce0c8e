//! QEMU stops the VM by itself, before the redirect is in place: somebody has raised its downtime-limit, and it is too old to wait for an
//! acknowledgement.

use katamaran_tests::lab::{QemuVersion, Wiring};
use katamaran_tests::run::{
    Meddle, Migration, MigrationOptions, Role, Stage, StageOptions, run_migration,
};

use nix::sys::signal::Signal;

use crate::support::{all, both, number, report, require, side};

/// Packets that the hook passes just before the flip are recovered after it. A destination without sch_plug has let the first redirected
/// ones into its tap by then.
const PAST_FLIP: u64 = 8;

fn recovered(wiring: Wiring) {
    let mut stage = StageOptions {
        meddle: Some(Meddle::Limit),
        ..StageOptions::new(QemuVersion::V7_2, 2000)
    };
    stage.lab.wiring = wiring;
    let run = run_migration(MigrationOptions {
        stage,
        ..MigrationOptions::default()
    })
    .unwrap();
    let source = report(side(&run.source));
    assert_eq!(source["outcome"], "migrated", "{}", all(&run));
    assert_eq!(
        source["cutover"]["qemu_stopped_first"],
        true,
        "{}",
        all(&run)
    );
    let told = |name: &str| number(source, &format!("/ledger/recovered/{name}"));
    // What waited in the tap, and the one that the stopped QEMU had taken.
    assert!(told("from_source_tap") > 0.0, "{}", all(&run));
    assert_eq!(told("swallowed"), 1.0, "{}", all(&run));
    assert_eq!(
        told("into_destination_tap"),
        told("from_source_tap") + 1.0,
        "{}",
        all(&run)
    );
    for side in [side(&run.source), side(&run.dest)] {
        assert_eq!(side.status, Some(0), "{}", all(&run));
        assert_eq!(report(side)["verdict"], "unproven", "{}", all(&run));
    }
    // The one that nobody can count: do_vm_stop() in QEMU's softmmu/cpus.c no longer lets the VM receive once it waits for the vCPUs,
    // queues what comes meanwhile, and discards that as soon as they stand still. Then it swallows the next.
    let udp = run.client.udp_v4.as_ref().unwrap();
    let other = udp.duplicated + udp.corrupted;
    assert!(udp.lost <= 1 && other == 0, "{}", all(&run));
    assert!(udp.reordered <= PAST_FLIP, "{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
}

#[test]
fn what_a_vm_did_not_read_that_qemu_stopped_first_reaches_it_on_the_destination_in_order() {
    require!(Root, Bpf, Lab);
    recovered(Wiring::Tap);
}

#[test]
fn the_same_for_a_vm_in_a_kata_pod() {
    require!(Root, Bpf, Lab);
    recovered(Wiring::Pod);
}

#[test]
fn a_vm_that_qemu_stops_while_its_stream_is_held_moves() {
    require!(Root, Bpf, Lab);
    for limit_ms in [1, 2, 4, 8] {
        let run = run_migration(MigrationOptions {
            stage: StageOptions {
                meddle: Some(Meddle::WhenHeld(limit_ms)),
                ..StageOptions::new(QemuVersion::StandIn, 5000)
            },
            ..MigrationOptions::default()
        })
        .unwrap();
        let source = report(side(&run.source));
        assert_eq!(source["outcome"], "migrated", "{}", all(&run));
        let udp = run.client.udp_v4.as_ref().unwrap();
        let other = udp.lost + udp.duplicated + udp.corrupted;
        assert!(other == 0 && udp.reordered <= PAST_FLIP, "{}", all(&run));
        assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    }
}

/// Something ends the migration while what was recovered goes to the destination, and the VM goes on where it was.
fn goes_back(exit: i32, strike: impl Fn(&mut Migration<'_>)) {
    for _ in 0..5 {
        let mut stage = Stage::set(StageOptions {
            meddle: Some(Meddle::Limit),
            ..StageOptions::new(QemuVersion::V7_2, 2000)
        })
        .unwrap();
        let mut migration = Migration::begin(&mut stage, &MigrationOptions::default()).unwrap();
        migration
            .look_until_logged(Role::Source, "recovering its packets")
            .unwrap();
        strike(&mut migration);
        let (ended, _) = migration.end().unwrap();
        // COMMIT may have been sent first.
        if ended.source.status == Some(exit) {
            let (client, _) = stage.finish_traffic().unwrap();
            let udp = client.udp_v4.as_ref().unwrap();
            let other = udp.duplicated + udp.reordered + udp.corrupted;
            assert!(udp.lost <= 1 && other == 0, "{udp:?} {}", both(&ended));
            return;
        }
    }
    panic!("COMMIT was always sent first");
}

#[test]
fn what_was_recovered_for_a_destination_that_is_killed_reaches_the_vm_where_it_goes_on() {
    require!(Root, Bpf, Lab);
    goes_back(1, |migration| migration.dest.process().kill());
}

#[test]
fn what_was_recovered_by_a_source_that_is_interrupted_reaches_the_vm_where_it_goes_on() {
    require!(Root, Bpf, Lab);
    goes_back(130, |migration| {
        migration.source.process().signal(Signal::SIGINT).unwrap();
    });
}
