//! Who asks for V's Ethernet address while V stands still is answered; and when V runs, its network is told where.

use std::net::IpAddr;

use katamaran_tests::lab::{
    GUEST_MAC, GUEST_V4, GUEST_V6, LabConfig, Netns, Node, QemuVersion, Wiring,
};
use katamaran_tests::run::{Migration, MigrationOptions, Stage, StageOptions, TrafficSpec, settle};
use katamaran_tests::traffic::Announcements;
use serde_json::Value;

use crate::support::{all, require};

/// The path between the nodes, and what V writes to its memory: a pause of some hundred ms.
const PATH_BYTES_PER_SECOND: u64 = 20_000_000;
const DIRTY: (u64, u64) = (30, 16);
const CONTROL_PORT: u16 = 7482;
/// `announce-self`, as it is asked for.
const ROUNDS: usize = 5;

fn stage(wiring: Wiring) -> Stage {
    let stage = Stage::set(StageOptions {
        lab: LabConfig {
            qemu: QemuVersion::V10_0,
            wiring,
            dirty: Some(DIRTY),
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 500,
            pps_v6: 500,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    stage
        .lab
        .slow_path_to_b(CONTROL_PORT, PATH_BYTES_PER_SECOND)
        .unwrap();
    stage
}

fn long_pause() -> MigrationOptions {
    MigrationOptions {
        source_args: vec!["--downtime=3000".to_owned()],
        ..MigrationOptions::default()
    }
}

/// Whether the node knows V's Ethernet address by both of V's addresses, and no other.
fn knows(node: &Netns, gateway: &str) -> bool {
    let told = node
        .command("ip", &["-j", "neigh", "show", "dev", gateway])
        .unwrap();
    let entries: Vec<Value> = serde_json::from_str(&told).unwrap();
    [IpAddr::V4(GUEST_V4), IpAddr::V6(GUEST_V6)]
        .iter()
        .all(|address| {
            entries.iter().any(|entry| {
                entry["dst"] == address.to_string().as_str() && entry["lladdr"] == GUEST_MAC
            })
        })
}

fn answered_in_the_pause(wiring: Wiring, gateway: &str) {
    let mut stage = stage(wiring);
    let a = stage.lab.network().node(Node::A).clone();
    let mut migration = Migration::begin(&mut stage, &long_pause()).unwrap();
    migration
        .look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })
        .unwrap();
    a.ip(&format!(
        "neigh flush dev {gateway}
         -6 neigh flush dev {gateway}"
    ))
    .unwrap();
    // V's packets keep coming, so the node asks anew at once; nobody but the redirect is there to answer.
    migration
        .look_until("an answer for V", |_| Ok(knows(&a, gateway)))
        .unwrap();
    let standing = migration.timeline.resume_ns.is_none();
    let (ended, timeline) = migration.end().unwrap();
    let run = settle(&mut stage, ended, &timeline).unwrap();
    assert!(standing, "V ran before it was asked for\n{}", all(&run));
    assert!(run.client.is_perfect(), "{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
}

#[test]
fn a_node_that_forgets_a_vm_that_stands_still_is_told_its_address_again() {
    require!(Root, Bpf, Lab);
    answered_in_the_pause(Wiring::Tap, "tap0");
}

#[test]
fn so_is_one_that_has_it_on_a_bridge() {
    require!(Root, Bpf, Lab);
    answered_in_the_pause(Wiring::Bridge, "br0");
}

#[test]
fn so_is_one_that_has_it_in_a_pod() {
    require!(Root, Bpf, Lab);
    answered_in_the_pause(Wiring::Pod, "vm0");
}

#[test]
fn everyone_on_the_bridge_hears_the_vm_where_it_runs_and_only_then() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(Wiring::Bridge);
    let b = stage.lab.network().node(Node::B).clone();
    // Another port of V's bridge on B, with somebody behind it.
    b.ip("link add ear0 type veth peer name port9
          link set port9 master br0
          link set port9 up
          link set ear0 up")
        .unwrap();
    let heard = Announcements::listen(&b, "ear0").unwrap();
    let mut migration = Migration::begin(&mut stage, &long_pause()).unwrap();
    while migration.look().unwrap() {}
    let (ended, timeline) = migration.end().unwrap();
    let run = settle(&mut stage, ended, &timeline).unwrap();
    assert!(run.client.is_perfect(), "{}", all(&run));
    let heard = heard.of(GUEST_MAC).unwrap();
    let resumed = timeline.resume_ns.unwrap();
    let early = heard.iter().filter(|at| **at < resumed).count();
    assert_eq!(early, 0, "{heard:?} before {resumed}\n{}", all(&run));
    // QEMU's own rounds begin with RESUME, and ours come in addition.
    assert!(heard.len() > ROUNDS, "{heard:?}\n{}", all(&run));
    let ms: Vec<u64> = heard.iter().map(|at| (at - resumed) / 1_000_000).collect();
    println!("announced {} times, ms after RESUME: {ms:?}", ms.len());
}
