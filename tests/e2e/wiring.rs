//! The same migration on each way that a VM hangs on its nodes: nothing lost, proof, and the node's wiring as it was.

use katamaran_tests::lab::{LabConfig, Node, POD_TAP, POD_VETH, QemuVersion, Wiring};
use katamaran_tests::run::{
    MigrationOptions, MigrationRun, Stage, run_migration, run_migration_on,
};

use crate::perfect::{assert_perfect, stage};
use crate::preflight::{and, dest_flags, run, source_flags};
use crate::support::{all, number, report, require, side};

fn options(wiring: Wiring) -> MigrationOptions {
    let required = "--require-zero-drop".to_owned();
    let mut stage = stage(QemuVersion::V10_0, LabConfig::default().tap_mtu);
    stage.lab.wiring = wiring;
    MigrationOptions {
        stage,
        source_args: vec![required.clone()],
        dest_args: vec![required],
        ..MigrationOptions::default()
    }
}

/// Migrates, and expects the best. The node's filters and qdiscs are part of what is compared for leaks.
#[track_caller]
fn migrate(wiring: Wiring, flags: &[&str]) -> MigrationRun {
    let mut options = options(wiring);
    let flags = flags.iter().map(|flag| (*flag).to_owned());
    options.source_args.extend(flags);
    let run = run_migration(options).unwrap();
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
    let run = migrate(Wiring::Pod, &[]);
    let said = &side(&run.source).stderr;
    for word in [POD_TAP, "eth0 in the pod", POD_VETH] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_vm_in_a_kata_pod_on_a_bridge_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    migrate(Wiring::PodBridge, &[]);
}

#[test]
fn a_vm_whose_tap_is_on_a_bridge_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    migrate(Wiring::Bridge, &[]);
}

#[test]
fn a_pod_can_be_hooked_on_the_node_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    migrate(Wiring::Pod, &["--redirect-dev=vm0"]);
}

#[test]
fn a_vm_whose_packets_go_past_the_nodes_devices_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    migrate(Wiring::PodPeer, &[]);
}

#[test]
fn a_hook_that_packets_go_past_is_noticed_before_it_loses_any() {
    require!(Root, Bpf, Lab);
    let mut options = options(Wiring::PodPeer);
    options.source_args.push("--redirect-dev=vm0".to_owned());
    let mut stage = Stage::set(options.stage.clone()).unwrap();

    let told = run(&stage, Node::B, &dest_flags(&stage));
    assert_eq!(told.status, Some(0), "{told:#?}");
    told.expect("wiring", "attachment", "ok", &[POD_VETH, "eth0", POD_TAP]);
    let told = run(&stage, Node::A, &source_flags(&stage));
    told.expect("wiring", "attachment", "ok", &[POD_VETH, "eth0", POD_TAP]);
    told.expect(
        "wiring",
        "redirect-device",
        "ok",
        &["eth0 in the pod", POD_VETH],
    );
    let told = run(
        &stage,
        Node::A,
        &and(source_flags(&stage), &["--redirect-dev=vm0"]),
    );
    told.expect(
        "wiring",
        "redirect-device",
        "ok",
        &[POD_VETH, "--redirect-dev"],
    );

    let run = run_migration_on(&mut stage, &options).unwrap();
    assert!(run.client.is_perfect(), "{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    let source = side(&run.source);
    assert_eq!(source.status, Some(1), "{}", all(&run));
    let error = report(source)["error"].as_str().unwrap();
    assert!(
        error.contains("past the hook on vm0") && error.contains("--redirect-dev"),
        "{error}"
    );
    let status = stage
        .qmp_a
        .command("query-status", serde_json::Value::Null)
        .unwrap();
    assert_eq!(status["running"], true, "{}", all(&run));
}
