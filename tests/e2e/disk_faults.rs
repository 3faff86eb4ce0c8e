//! Something breaks while disks are mirrored: V goes on where it is, with all that it wrote.
//!
//! A cross-section; `cargo xtask faults` goes through all faults, moments and QEMU versions.

use katamaran_tests::lab::QemuVersion;
use katamaran_tests::run::{Fault, FaultCase, Moment, run_with_fault};

use crate::support::{both, require};

const OLD: QemuVersion = QemuVersion::V7_2;
const NEW: QemuVersion = QemuVersion::V10_0;

#[track_caller]
fn goes_on(fault: Fault, moments: &[(QemuVersion, Moment)]) {
    for (qemu, moment) in moments {
        let case = FaultCase {
            second_nic: false,
            qemu: *qemu,
            fault,
            moment: *moment,
        };
        let run = run_with_fault(case).unwrap();
        assert_eq!(
            run.problems,
            Vec::<String>::new(),
            "{case:?}\n{}",
            both(&run.ended)
        );
    }
}

#[test]
fn the_vm_keeps_its_disks_when_the_destinations_katamaran_is_killed() {
    require!(Root, Bpf, Lab);
    goes_on(Fault::DestinationKilled, &[(NEW, Moment::MidMirror)]);
}

#[test]
fn what_is_left_of_the_mirrors_of_a_source_that_was_killed_is_removed() {
    require!(Root, Bpf, Lab);
    let moments = [(OLD, Moment::MidMirror), (NEW, Moment::Ready)];
    goes_on(Fault::SourceKilled, &moments);
}

#[test]
fn the_vm_keeps_its_disks_when_the_destinations_qemu_is_killed() {
    require!(Root, Bpf, Lab);
    let moments = [(OLD, Moment::MirrorStart), (NEW, Moment::Stopped)];
    goes_on(Fault::DestinationQemuKilled, &moments);
}

#[test]
fn a_vm_that_writes_survives_that_its_mirrors_are_given_up_as_they_begin() {
    require!(Root, Bpf, Lab);
    let moments = [(OLD, Moment::MirrorStart), (NEW, Moment::MirrorStart)];
    goes_on(Fault::SourceInterrupted, &moments);
}

#[test]
fn the_vm_keeps_its_disks_when_the_link_is_cut() {
    require!(Root, Bpf, Lab);
    goes_on(Fault::LinkCut, &[(NEW, Moment::Ready)]);
}

#[test]
fn a_vm_that_writes_faster_than_the_path_takes_it_moves_all_the_same() {
    require!(Root, Bpf, Lab);
    goes_on(Fault::LinkLossy, &[(NEW, Moment::MirrorStart)]);
}

#[test]
fn the_vm_keeps_its_disks_when_the_destinations_disk_is_full() {
    require!(Root, Bpf, Lab);
    let moments = [(NEW, Moment::MidMirror), (OLD, Moment::Copy)];
    goes_on(Fault::DestinationFull, &moments);
}

#[test]
fn the_vm_keeps_its_disks_when_writes_fail_on_the_destination() {
    require!(Root, Bpf, Lab);
    let moments = [(OLD, Moment::MidMirror), (NEW, Moment::Copy)];
    goes_on(Fault::WritesFailOnB, &moments);
}

#[test]
fn the_vm_keeps_its_disks_when_reads_fail_on_the_source() {
    require!(Root, Bpf, Lab);
    goes_on(Fault::ReadsFailOnA, &[(NEW, Moment::MidMirror)]);
}

#[test]
fn the_migration_fails_when_the_export_dies_after_the_mirror_was_ready() {
    require!(Root, Bpf, Lab);
    let moments = [
        (NEW, Moment::Ready),
        (OLD, Moment::Copy),
        (NEW, Moment::Copy),
    ];
    goes_on(Fault::ExportStopped, &moments);
}

#[test]
fn the_migration_fails_when_the_mirrors_path_goes_silent_after_they_were_ready() {
    require!(Root, Bpf, Lab);
    goes_on(Fault::PathSilent, &[(NEW, Moment::Ready)]);
}
