//! The VM moves, nothing is lost, and there is proof.

use katamaran_tests::lab::{LabConfig, QemuVersion};
use katamaran_tests::run::{
    MigrationOptions, MigrationRun, StageOptions, TrafficSpec, run_migration,
};

use crate::support::{all, number, report, require, side};

/// Two readings of a wall clock, a few scheduling delays.
const CLOCK_MS: f64 = 5.0;
/// A guest that is emulated on a busy machine answers late also when nothing happens to it.
const NOISE_MS: f64 = 1000.0;

pub(crate) fn stage(qemu: QemuVersion, tap_mtu: u32) -> StageOptions {
    StageOptions {
        lab: LabConfig {
            qemu,
            tap_mtu,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 500,
            pps_v6: 200,
            // Pieces of several segments: most are full. A guest that is emulated on a busy machine can't
            // do much more, and what it drops itself would look like a loss on the way.
            tcp_v4: Some(200_000),
            tcp_v6: Some(100_000),
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    }
}

/// Migrates with `--require-zero-drop` on both sides and the given flags on the source.
fn migrate(stage: StageOptions, flags: &[&str]) -> MigrationRun {
    let required = "--require-zero-drop".to_owned();
    let flags = flags.iter().map(|flag| (*flag).to_owned());
    run_migration(MigrationOptions {
        stage,
        source_args: flags.chain([required.clone()]).collect(),
        dest_args: vec![required],
        ..MigrationOptions::default()
    })
    .unwrap()
}

/// Nothing lost, nothing left, exit 0 on both sides, and the ledger says that it is proven.
#[track_caller]
pub(crate) fn assert_perfect(run: &MigrationRun) {
    assert!(run.client.is_perfect(), "{}", all(run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(run));
    for side in [side(&run.source), side(&run.dest)] {
        assert_eq!(side.status, Some(0), "{}", all(run));
        let report = report(side);
        assert_eq!(report["outcome"], "migrated", "{}", all(run));
        assert_eq!(report["verdict"], "proven", "{}", all(run));
        let ledger = &report["ledger"];
        assert_eq!(
            (&ledger["lost"], &ledger["duplicated"], &ledger["x"]),
            (&0.into(), &0.into(), &0.into())
        );
        assert_eq!(ledger["digest_source"], ledger["digest_dest"]);
        // Something waited while the VM stood still, and no more than there was.
        let held = number(report, "/held/packets");
        let arrived = number(report, "/ledger/d1/packets") + number(report, "/ledger/d2/packets");
        assert!(0.0 < held && held <= arrived, "{held} held\n{}", all(run));
    }
    // A migration during which nothing had to be redirected would prove nothing.
    assert!(
        number(report(side(&run.source)), "/ledger/s3/packets") > 0.0,
        "{}",
        all(run)
    );
    assert!(
        number(report(side(&run.source)), "/ledger/s2/packets") > 0.0,
        "{}",
        all(run)
    );
}

/// What the report says of time is what QEMU's events and the client say.
#[track_caller]
fn assert_times_agree(run: &MigrationRun) {
    let report = report(side(&run.source));
    let told = number(report, "/downtime_ms");
    let blackout = number(report, "/blackout_ms");
    let clocks = CLOCK_MS + number(report, "/clock_rtt_us") / 1000.0;
    let seen = run.downtime_ms.unwrap();
    assert!(
        (told - seen).abs() <= clocks,
        "{told} is not {seen}\n{}",
        all(run)
    );
    // The flip precedes STOP, the release follows RESUME.
    assert!(
        blackout >= told - clocks,
        "{blackout} < {told}\n{}",
        all(run)
    );
    // No client can see less than the pause, but for the packet that was answered just before it and the
    // one just after; and it sees the whole blackout at most, where nothing else holds its packets up.
    let (stop_ns, resume_ns) = (run.stop_ns.unwrap(), run.resume_ns.unwrap());
    for udp in run.client.udp() {
        let silence = udp.record.longest_silence(stop_ns, resume_ns);
        let gap = silence.map_or(0.0, |silence| silence.ms());
        assert!(
            (0.8 * told - clocks..=2.0 * blackout + NOISE_MS).contains(&gap),
            "gap {gap} ms, downtime {told} ms, blackout {blackout} ms\n{}",
            all(run)
        );
    }
}

#[test]
fn a_vm_under_load_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    let run = migrate(stage(QemuVersion::V10_0, 1450), &[]);
    assert_perfect(&run);
    assert_times_agree(&run);
    let report = report(side(&run.source));
    assert_eq!(
        report["tunnel"]["kind"]
            .as_str()
            .or(report["tunnel"].as_str()),
        Some("ip"),
        "{report:#}"
    );
    // Headers and ACKs included, more than small packets alone would have: TCP went in full segments.
    let counted = |hop: &str, what: &str| number(report, &format!("/ledger/{hop}/{what}"));
    assert!(
        counted("s1", "bytes") / counted("s1", "packets") > 200.0,
        "{report:#}"
    );
}

#[test]
fn a_vm_on_an_old_qemu_moves_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    let run = migrate(stage(QemuVersion::V7_2, 1450), &[]);
    assert_perfect(&run);
    assert_times_agree(&run);
}

#[test]
fn a_vm_moves_over_several_channels_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    let run = migrate(stage(QemuVersion::V10_0, 1450), &["--multifd-channels=2"]);
    assert_perfect(&run);
}

#[test]
fn full_size_packets_take_a_tunnel_that_may_fragment_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    let run = migrate(stage(QemuVersion::V10_0, 1500), &[]);
    assert_perfect(&run);
    let report = report(side(&run.source));
    assert!(report["tunnel"].to_string().contains("vxlan"), "{report:#}");
}

#[test]
fn a_vm_of_both_families_moves_through_gre_with_nothing_lost_and_proof() {
    require!(Root, Bpf, Lab);
    let run = migrate(stage(QemuVersion::V10_0, 1450), &["--tunnel-mode=gre"]);
    assert_perfect(&run);
    let report = report(side(&run.source));
    assert!(report["tunnel"].to_string().contains("gre"), "{report:#}");
}

#[test]
fn without_a_tunnel_nothing_is_proven() {
    require!(Root, Bpf, Lab);
    let mut options = MigrationOptions {
        stage: StageOptions::new(QemuVersion::V10_0, 600),
        source_args: vec!["--tunnel-mode=none".to_owned()],
        dest_args: vec!["--tunnel-mode=none".to_owned()],
        ..MigrationOptions::default()
    };
    let run = run_migration(options.clone()).unwrap();
    for side in [side(&run.source), side(&run.dest)] {
        assert_eq!(side.status, Some(0), "{}", all(&run));
        assert_eq!(report(side)["verdict"], "unproven", "{}", all(&run));
    }
    let unproven = report(side(&run.source))["unproven"].as_array().unwrap();
    assert!(!unproven.is_empty(), "{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    for flags in [&mut options.source_args, &mut options.dest_args] {
        flags.push("--require-zero-drop".to_owned());
    }
    let run = run_migration(options).unwrap();
    assert_eq!(side(&run.source).status, Some(3), "{}", all(&run));
    assert_eq!(side(&run.dest).status, Some(3), "{}", all(&run));
}
