//! What can't work is refused before anything is changed, with all reasons at once.

use katamaran_tests::lab::{GUEST_MAC, Guest, GuestImage, GuestSpec, Identity, Node, Start};
use katamaran_tests::run::{Ended, Migration, MigrationOptions, Stage, StageOptions, TrafficSpec};
use serde_json::Value;

use crate::support::{both, report, require};

/// An Ethernet address that V does not have.
const OTHER_MAC: &str = "02:00:00:00:00:99";

fn stage() -> Stage {
    Stage::set(StageOptions {
        traffic: TrafficSpec {
            pps_v4: 500,
            tcp_v4: Some(100_000),
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap()
}

/// Puts another QEMU on B, with so much memory and this Ethernet address.
fn replace_guest_b(stage: &mut Stage, memory_mib: u32, mac: &str) {
    stage.guest_b.process().kill();
    let config = stage.lab.config();
    let spec = GuestSpec {
        qemu: config.qemu,
        cards: vec![Identity {
            mac: mac.to_owned(),
            ..Identity::v(config.wiring.tap())
        }],
        memory_mib,
        mtu: config.tap_mtu,
        dirty: None,
        drives: Vec::new(),
        named_drives: false,
        vhost: false,
        extra_args: Vec::new(),
    };
    let (netns, dir) = (stage.lab.network().node(Node::B), stage.lab.dir());
    let image = GuestImage::prepare().unwrap();
    stage.guest_b = Guest::start(&spec, &image, netns, dir, "guest-b", Start::Incoming).unwrap();
    stage.qmp_b = stage.guest_b.qmp().unwrap();
}

fn migrate(stage: &mut Stage) -> Ended {
    let migration = Migration::begin(stage, &MigrationOptions::default()).unwrap();
    migration.end().unwrap().0
}

/// V runs, its traffic was not disturbed, and the QEMU on B waits as it did.
#[track_caller]
fn assert_untouched(stage: &mut Stage, ended: &Ended) {
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(ended));
    let client = stage.client.as_ref().unwrap();
    client.wait_for_more(50).unwrap();
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(ended));
    let migration = stage.qmp_a.command("query-migrate", Value::Null).unwrap();
    assert_eq!(migration["status"], Value::Null, "{}", both(ended));
    let status = stage.qmp_b.command("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "inmigrate", "{}", both(ended));
}

#[test]
fn a_destination_that_differs_is_refused_with_all_differences_and_nothing_is_touched() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    replace_guest_b(&mut stage, 160, OTHER_MAC);
    let ended = migrate(&mut stage);
    for side in [&ended.source, &ended.dest] {
        assert_eq!(side.status, Some(2), "{}", both(&ended));
        assert_eq!(report(side)["outcome"], "refused", "{}", both(&ended));
        for word in ["128 MiB", "160 MiB", GUEST_MAC, OTHER_MAC] {
            assert!(side.stdout.contains(word), "{word}\n{}", both(&ended));
        }
    }
    assert_untouched(&mut stage, &ended);
    // With a fitting one it goes.
    replace_guest_b(&mut stage, 128, GUEST_MAC);
    let ended = migrate(&mut stage);
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    assert!(client.is_perfect(), "{client:?}\n{}", both(&ended));
}

#[test]
fn a_source_without_a_destination_is_refused_and_nothing_is_touched() {
    require!(Root, Bpf, Lab);
    let mut stage = stage();
    let options = MigrationOptions {
        source_args: vec!["--port=7999".to_owned()],
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until("the source's end", |migration| {
            Ok(!migration.source.runs()?)
        })
        .unwrap();
    let signal = nix::sys::signal::Signal::SIGTERM;
    migration.dest.process().signal(signal).unwrap();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(2), "{}", both(&ended));
    assert!(
        ended.source.stdout.contains("--mode dest"),
        "{}",
        both(&ended)
    );
    assert_eq!(ended.dest.status, Some(130), "{}", both(&ended));
    assert_untouched(&mut stage, &ended);
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.is_perfect(), "{client:?}\n{}", both(&ended));
}
