//! Migration after migration, and what they amount to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::disk_soak::disk_soak;
use super::figures::{faults, gaps, ms, report, udp, verdict};
use super::scene::Scene;
use super::screen::Screen;
use super::spread::Spread;
use super::table::Table;
use crate::lab::QemuVersion;
use crate::run::{Baseline, MigrationRun};
use crate::traffic::{UdpResult, now_ns};

/// A median of client gaps this many times that of plain QEMU is still as good.
const GOOD_RATIO: f64 = 1.2;

/// What to run.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// Migrations per QEMU version.
    pub runs: u32,
    /// The QEMU versions, each with all of the runs.
    pub qemus: Vec<QemuVersion>,
    /// The VM and its traffic; its QEMU version is replaced.
    pub scene: Scene,
    /// Follow each run by a plain QEMU migration.
    pub interleave_plain: bool,
}

/// What is kept of one run.
#[derive(Debug)]
struct Outcome {
    qemu: QemuVersion,
    perfect: bool,
    proven: bool,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    tcp_intact: bool,
    leaks: usize,
    downtime_ms: Option<f64>,
    blackout_ms: Option<f64>,
    gap_ms: Option<f64>,
    calm_ms: Option<f64>,
    first_redirect_us: Option<f64>,
    /// The run by plain QEMU that followed.
    plain: Option<Plain>,
}

/// What is kept of a plain QEMU migration.
#[derive(Debug, Clone, Copy)]
struct Plain {
    lost: u64,
    gap_ms: Option<f64>,
    downtime_ms: Option<f64>,
}

impl Outcome {
    /// A run that did not even come to an end.
    fn failed(qemu: QemuVersion) -> Self {
        Self::of(qemu, &MigrationRun::default(), false)
    }

    fn of(qemu: QemuVersion, run: &MigrationRun, perfect: bool) -> Self {
        let (report, gaps, udp) = (report(run), gaps(run), udp(run));
        Self {
            qemu,
            perfect,
            proven: verdict(report.as_ref()) == "proven",
            lost: udp.map_or(0, |udp| udp.lost),
            duplicated: udp.map_or(0, |udp| udp.duplicated),
            reordered: udp.map_or(0, |udp| udp.reordered),
            tcp_intact: udp.is_some() && run.client.tcp().all(|tcp| tcp.intact),
            leaks: run.leaks.len(),
            downtime_ms: report.as_ref().and_then(|report| report.downtime_ms),
            blackout_ms: report.as_ref().and_then(|report| report.blackout_ms),
            gap_ms: gaps.map(|gaps| gaps.cutover.ms()),
            calm_ms: gaps.and_then(|gaps| gaps.calm_ms),
            first_redirect_us: report.and_then(|report| report.cutover.first_redirect_us),
            plain: None,
        }
    }
}

/// Runs all of them, one line each, and prints the table. Returns whether every run was perfect.
///
/// # Errors
///
/// When the evidence of a bad run can't be kept, or nobody reads what is printed.
pub fn soak(screen: &Screen, options: &SoakOptions) -> Result<bool> {
    if options.scene.disks.is_some() {
        return disk_soak(screen, options);
    }
    let plain_too = match options.interleave_plain {
        true => ",\neach followed by a plain QEMU migration",
        false => "",
    };
    screen.print(&format!(
        "{} x katamaran per QEMU version, {} UDP packets/s and {:.1} MB/s of TCP{plain_too}\n",
        options.runs,
        options.scene.pps,
        options.scene.tcp as f64 / 1e6,
    ))?;
    screen.print(&line([
        "run", "QEMU", "verdict", "lost", "dup", "reord", "TCP", "downtime", "blackout", "gap",
        "calm",
    ]))?;
    let evidence = evidence_dir();
    let mut outcomes = Vec::new();
    for run in 1..=options.runs {
        for qemu in &options.qemus {
            let scene = Scene {
                qemu: *qemu,
                ..options.scene
            };
            let dir = evidence.join(format!("run-{run}-qemu-{qemu}"));
            let mut outcome = migrate(screen, &scene, run, &dir)?;
            if options.interleave_plain {
                outcome.plain = migrate_plainly(screen, &scene)?;
            }
            outcomes.push(outcome);
        }
    }
    screen.print("")?;
    screen.print(&summary(options, &outcomes))?;
    let perfect = outcomes.iter().filter(|outcome| outcome.perfect).count();
    tell_end(screen, perfect, outcomes.len())
}

fn migrate(screen: &Screen, scene: &Scene, number: u32, evidence: &Path) -> Result<Outcome> {
    let (number, version) = (number.to_string(), scene.qemu.to_string());
    let run = match scene.by_katamaran() {
        Ok(run) => run,
        Err(error) => {
            tell_failure(screen, evidence, &number, &version, &error)?;
            return Ok(Outcome::failed(scene.qemu));
        }
    };
    let faults = faults(&run);
    let outcome = Outcome::of(scene.qemu, &run, faults.is_empty());
    screen.print(&line([
        &number,
        &version,
        verdict(report(&run).as_ref()),
        &outcome.lost.to_string(),
        &outcome.duplicated.to_string(),
        &outcome.reordered.to_string(),
        if outcome.tcp_intact { "ok" } else { "BAD" },
        &ms(outcome.downtime_ms),
        &ms(outcome.blackout_ms),
        &ms(outcome.gap_ms),
        &ms(outcome.calm_ms),
    ]))?;
    tell_faults(screen, evidence, &faults, &run)?;
    Ok(outcome)
}

/// A run that did not come to an end: its line, and where its error is kept whole.
pub(super) fn tell_failure(
    screen: &Screen,
    evidence: &Path,
    number: &str,
    version: &str,
    error: &anyhow::Error,
) -> Result<()> {
    let text = format!("{error:#}");
    let first = text.lines().next().unwrap_or_default();
    screen.print(&format!("{number:>4} {version:<4} FAILED: {first}"))?;
    keep(evidence, "error.txt", &text)?;
    screen.print(&format!("      kept: {}", evidence.display()))
}

/// What is wrong with a run, if anything, below its line; and where its evidence is kept.
pub(super) fn tell_faults(
    screen: &Screen,
    evidence: &Path,
    faults: &[String],
    run: &MigrationRun,
) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    for fault in faults {
        screen.print(&format!("      {fault}"))?;
    }
    keep_run(evidence, run)?;
    screen.print(&format!("      kept: {}", evidence.display()))
}

/// The last line of a soak; whether every run was perfect.
pub(super) fn tell_end(screen: &Screen, perfect: usize, of: usize) -> Result<bool> {
    screen.print(&format!("\n  {perfect} of {of} runs were perfect"))?;
    Ok(perfect == of)
}

/// A plain QEMU migration of the same VM.
fn migrate_plainly(screen: &Screen, scene: &Scene) -> Result<Option<Plain>> {
    let plain = match scene.by_plain_means(Baseline::Plain) {
        Ok(plain) => plain,
        Err(error) => {
            let text = format!("{error:#}");
            let first = text.lines().next().unwrap_or_default();
            screen.print(&format!("{:9} plain FAILED: {first}", ""))?;
            return Ok(None);
        }
    };
    let gaps = gaps(&plain);
    let gap = gaps.map(|gaps| gaps.cutover.ms());
    let count = |count: fn(&UdpResult) -> u64| udp(&plain).map_or(0, count).to_string();
    screen.print(&line([
        "",
        "",
        "plain",
        &count(|udp| udp.lost),
        &count(|udp| udp.duplicated),
        &count(|udp| udp.reordered),
        if plain.client.tcp().all(|tcp| tcp.intact) {
            "ok"
        } else {
            "BAD"
        },
        &ms(plain.downtime_ms),
        "",
        &ms(gap),
        &ms(gaps.and_then(|gaps| gaps.calm_ms)),
    ]))?;
    Ok(Some(Plain {
        lost: plain.client.lost(),
        gap_ms: gap,
        downtime_ms: plain.downtime_ms,
    }))
}

/// One line of the table that grows while it runs.
fn line(cells: [&str; 11]) -> String {
    let [
        run,
        qemu,
        verdict,
        counts @ ..,
        downtime,
        blackout,
        gap,
        calm,
    ] = cells;
    let [lost, duplicated, reordered, tcp] = counts;
    format!(
        "{run:>4} {qemu:<4} {verdict:<9}{lost:>5}{duplicated:>4}{reordered:>6}{tcp:>5}\
         {downtime:>10}{blackout:>10}{gap:>8}{calm:>8}"
    )
}

/// Where the evidence of this soak goes.
pub(super) fn evidence_dir() -> PathBuf {
    std::env::temp_dir().join(format!("katamaran-soak-{}", now_ns() / 1_000_000))
}

/// Keeps what both sides said and reported of a run that was not perfect.
fn keep_run(dir: &Path, run: &MigrationRun) -> Result<()> {
    keep(dir, "run.json", &serde_json::to_string_pretty(run)?)?;
    for (name, side) in [("source", &run.source), ("dest", &run.dest)] {
        let Some(side) = side else { continue };
        keep(dir, &format!("{name}.stdout"), &side.stdout)?;
        keep(dir, &format!("{name}.stderr"), &side.stderr)?;
        if let Some(report) = &side.report {
            let report = serde_json::to_string_pretty(report)?;
            keep(dir, &format!("{name}.json"), &report)?;
        }
    }
    match &run.silence {
        Some(silence) => keep(dir, "silence.txt", silence),
        None => Ok(()),
    }
}

fn keep(dir: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn summary(options: &SoakOptions, outcomes: &[Outcome]) -> String {
    let mut counts = Table::new(&[
        "QEMU",
        "runs",
        "proven",
        "lost",
        "dup",
        "reord",
        "TCP intact",
        "leaks",
    ]);
    let mut notes = String::new();
    for qemu in &options.qemus {
        let of = of(outcomes, *qemu);
        let sum = |figure: fn(&Outcome) -> u64| {
            of.iter()
                .map(|outcome| figure(outcome))
                .sum::<u64>()
                .to_string()
        };
        counts.row(vec![
            qemu.to_string(),
            of.len().to_string(),
            sum(|o| o.proven.into()),
            sum(|o| o.lost),
            sum(|o| o.duplicated),
            sum(|o| o.reordered),
            sum(|o| o.tcp_intact.into()),
            sum(|o| o.leaks as u64),
        ]);
        notes.extend(against_plain(*qemu, &of));
    }
    format!(
        "{}\n\n{}{notes}",
        counts.render(),
        spreads(options, outcomes).render()
    )
}

fn of(outcomes: &[Outcome], qemu: QemuVersion) -> Vec<&Outcome> {
    outcomes
        .iter()
        .filter(|outcome| outcome.qemu == qemu)
        .collect()
}

/// Minimum, median and maximum of everything that was measured.
fn spreads(options: &SoakOptions, outcomes: &[Outcome]) -> Table {
    type Figure = fn(&Outcome) -> Option<f64>;
    let figures: [(&str, Figure); 7] = [
        ("downtime, ms", |o| o.downtime_ms),
        ("blackout, ms", |o| o.blackout_ms),
        ("client gap, ms", |o| o.gap_ms),
        ("calm gap, ms", |o| o.calm_ms),
        ("first redirect, us", |o| o.first_redirect_us),
        ("plain QEMU: downtime, ms", |o| o.plain?.downtime_ms),
        ("plain QEMU: client gap, ms", |o| o.plain?.gap_ms),
    ];
    let mut heading = vec![String::new()];
    for qemu in &options.qemus {
        heading.extend([
            format!("{qemu}: min"),
            "median".to_owned(),
            "max".to_owned(),
        ]);
    }
    let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
    let mut table = Table::new(&heading);
    for (name, figure) in figures {
        let mut row = vec![name.to_owned()];
        let mut known = false;
        for qemu in &options.qemus {
            let spread = Spread::of(of(outcomes, *qemu).into_iter().filter_map(figure));
            known |= spread.is_some();
            row.extend([
                ms(spread.map(|spread| spread.min)),
                ms(spread.map(|spread| spread.median)),
                ms(spread.map(|spread| spread.max)),
            ]);
        }
        if known {
            table.row(row);
        }
    }
    table
}

/// How the client's gap compares with that of plain QEMU migrations in between.
fn against_plain(qemu: QemuVersion, of: &[&Outcome]) -> Option<String> {
    let own = Spread::of(of.iter().filter_map(|outcome| outcome.gap_ms))?;
    let plain = Spread::of(of.iter().filter_map(|outcome| outcome.plain?.gap_ms))?;
    let lost: u64 = of
        .iter()
        .filter_map(|outcome| Some(outcome.plain?.lost))
        .sum();
    let ratio = own.median / plain.median;
    let judgement = if ratio <= GOOD_RATIO {
        "within"
    } else {
        "ABOVE"
    };
    Some(format!(
        "\n\n  QEMU {qemu}: median gap {ratio:.2} times plain QEMU's ({judgement} {GOOD_RATIO}); \
         plain QEMU lost {lost}"
    ))
}
