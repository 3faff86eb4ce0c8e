//! Signals at any moment: the VM stays where it is, nothing is lost, nothing is left.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use katamaran_tests::lab::LabConfig;
use katamaran_tests::run::{
    Ended, KatamaranProcess, Migration, MigrationOptions, Role, SideResult, Stage, StageOptions,
    TrafficSpec,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{both, report, require};

/// A side that is told to end has ended by then.
const WITHIN: Duration = Duration::from_secs(10);
/// A copy that takes some seconds.
const SLOWLY: &str = "--max-bandwidth=25M";

/// When a signal is sent.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// When a side has logged this.
    Logged(Role, &'static str),
    /// Some time into the RAM copy, the same for nobody.
    Copying { longest_ms: u64 },
}

const CANCELLATIONS: [(Moment, Role, Signal); 10] = [
    (
        Moment::Logged(Role::Dest, "a source has come"),
        Role::Source,
        Signal::SIGINT,
    ),
    (
        Moment::Logged(Role::Dest, "phase=\"prepare\""),
        Role::Source,
        Signal::SIGTERM,
    ),
    (
        Moment::Logged(Role::Dest, "phase=\"prepare\""),
        Role::Dest,
        Signal::SIGINT,
    ),
    (
        Moment::Logged(Role::Source, "phase=\"arm\""),
        Role::Source,
        Signal::SIGINT,
    ),
    (
        Moment::Logged(Role::Source, "phase=\"arm\""),
        Role::Dest,
        Signal::SIGTERM,
    ),
    (
        Moment::Copying { longest_ms: 300 },
        Role::Source,
        Signal::SIGTERM,
    ),
    (
        Moment::Copying { longest_ms: 1000 },
        Role::Source,
        Signal::SIGINT,
    ),
    (
        Moment::Copying { longest_ms: 1000 },
        Role::Dest,
        Signal::SIGINT,
    ),
    (
        Moment::Copying { longest_ms: 2000 },
        Role::Source,
        Signal::SIGINT,
    ),
    (
        Moment::Copying { longest_ms: 2000 },
        Role::Dest,
        Signal::SIGTERM,
    ),
];

fn traffic() -> TrafficSpec {
    TrafficSpec {
        pps_v4: 500,
        pps_v6: 200,
        tcp_v4: Some(100_000),
        ..TrafficSpec::default()
    }
}

fn options(flags: &[&str]) -> MigrationOptions {
    MigrationOptions {
        source_args: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..MigrationOptions::default()
    }
}

/// Looks until the moment has come.
fn wait_for(migration: &mut Migration<'_>, moment: Moment) {
    match moment {
        Moment::Logged(role, text) => migration.look_until_logged(role, text).unwrap(),
        Moment::Copying { longest_ms } => {
            migration.look_until_logged(Role::Source, "RAM:").unwrap();
            let delay = RandomState::new().hash_one(longest_ms) % longest_ms;
            let due = Instant::now() + Duration::from_millis(delay);
            migration
                .look_until("a moment of the copy", |_| Ok(Instant::now() >= due))
                .unwrap();
        }
    }
}

/// Sends the signal and looks until both sides have ended; the one that was told ends in time.
#[track_caller]
fn cancel(mut migration: Migration<'_>, role: Role, signal: Signal) -> Ended {
    migration.signal(role, signal, WITHIN).unwrap();
    migration.end().unwrap().0
}

fn of(ended: &Ended, role: Role) -> (&SideResult, &SideResult) {
    match role {
        Role::Source => (&ended.source, &ended.dest),
        Role::Dest => (&ended.dest, &ended.source),
    }
}

/// The VM runs on A and answers.
#[track_caller]
fn assert_runs_on_a(stage: &mut Stage, ended: &Ended) {
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(ended));
    let client = stage.client.as_ref().unwrap();
    let answers = client.wait_for_more(50);
    assert!(answers.is_ok(), "{answers:?}\n{}", both(ended));
}

#[test]
fn a_migration_cancelled_at_ten_moments_leaves_the_vm_and_its_traffic_alone() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions {
        traffic: traffic(),
        ..StageOptions::default()
    })
    .unwrap();
    for (moment, role, signal) in CANCELLATIONS {
        stage.renew_guest_b().unwrap();
        let mut migration = Migration::begin(&mut stage, &options(&[SLOWLY])).unwrap();
        wait_for(&mut migration, moment);
        let ended = cancel(migration, role, signal);
        let what = format!("{moment:?} {role:?} {signal}\n{}", both(&ended));
        let (told, other) = of(&ended, role);
        assert_eq!(told.status, Some(130), "{what}");
        assert_eq!(report(told)["outcome"], "cancelled", "{what}");
        assert!(matches!(other.status, Some(1 | 130)), "{what}");
        assert_eq!(ended.leaks, Vec::<String>::new(), "{what}");
        assert_runs_on_a(&mut stage, &ended);
    }
    stage.renew_guest_b().unwrap();
    let migration = Migration::begin(&mut stage, &options(&["--require-zero-drop"])).unwrap();
    let (ended, _) = migration.end().unwrap();
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    // Over all of it.
    assert!(client.is_perfect(), "{client:?}\n{}", both(&ended));
}

#[test]
fn a_destination_that_waits_for_a_source_ends_at_a_signal_and_leaves_qemu_alone() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions {
        traffic: TrafficSpec {
            pps_v4: 0,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut dest = KatamaranProcess::start::<&str>(&stage, Role::Dest, &[]).unwrap();
        dest.wait_until_listening(&stage.lab, 7482).unwrap();
        dest.process().signal(signal).unwrap();
        dest.process().wait_until(Instant::now() + WITHIN).unwrap();
        let result = dest.result().unwrap();
        assert_eq!(result.status, Some(130), "{result:?}");
        stage.renew_guest_b().unwrap();
    }
}

/// Has V write memory faster than a slow path carries it, so that its pause is long, and sends the
/// signal when it has just begun: packets are being redirected and held.
fn cancel_in_the_pause(role: Role) {
    let mut stage = Stage::set(StageOptions {
        lab: LabConfig {
            dirty: Some((30, 16)),
            ..LabConfig::default()
        },
        traffic: traffic(),
        ..StageOptions::default()
    })
    .unwrap();
    stage.lab.slow_path_to_b(7482, 20_000_000).unwrap();
    let flags = options(&["--downtime=3000"]);
    let mut migration = Migration::begin(&mut stage, &flags).unwrap();
    migration
        .look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })
        .unwrap();
    let ended = cancel(migration, role, Signal::SIGINT);
    let (told, other) = of(&ended, role);
    assert_eq!(told.status, Some(130), "{}", both(&ended));
    assert!(matches!(other.status, Some(1 | 130)), "{}", both(&ended));
    assert_runs_on_a(&mut stage, &ended);
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    // Every packet that was redirected is accounted for.
    let returned = &report(&ended.source)["returned"];
    assert!(returned["redirected"].as_u64().unwrap() > 0, "{returned}");
    assert_eq!(returned["arrived"], returned["redirected"], "{returned}");
    assert!(
        returned["returned"].as_u64() >= returned["redirected"].as_u64(),
        "{returned}"
    );
    // One that was on its way at the flip back may come after one that then comes directly.
    let copies: u64 = client.udp().map(|udp| udp.duplicated).sum();
    assert_eq!((client.lost(), copies), (0, 0), "{}", both(&ended));
    assert!(client.tcp().all(|tcp| tcp.intact), "{}", both(&ended));
}

#[test]
fn a_signal_to_the_source_in_the_pause_gives_every_held_packet_back() {
    require!(Root, Bpf, Lab);
    cancel_in_the_pause(Role::Source);
}

#[test]
fn a_signal_to_the_destination_in_the_pause_gives_every_held_packet_back() {
    require!(Root, Bpf, Lab);
    cancel_in_the_pause(Role::Dest);
}

#[test]
fn a_signal_after_commit_undoes_nothing() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions {
        traffic: traffic(),
        ..StageOptions::default()
    })
    .unwrap();
    let mut migration = Migration::begin(&mut stage, &options(&["--require-zero-drop"])).unwrap();
    migration
        .look_until("V's resume", |migration| {
            Ok(migration.timeline.resume_ns.is_some())
        })
        .unwrap();
    for role in [Role::Source, Role::Dest] {
        migration
            .side(role)
            .process()
            .signal(Signal::SIGINT)
            .unwrap();
    }
    let (ended, _) = migration.end().unwrap();
    for side in [&ended.source, &ended.dest] {
        assert_eq!(side.status, Some(0), "{}", both(&ended));
        assert_eq!(report(side)["outcome"], "migrated", "{}", both(&ended));
        assert_eq!(report(side)["verdict"], "proven", "{}", both(&ended));
    }
    let status = stage.qmp_b.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(&ended));
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.is_perfect(), "{client:?}\n{}", both(&ended));
}
