//! Migration after migration, and what they amount to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

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
    /// The run by plain QEMU that followed: packets lost, gap and downtime in ms.
    plain: Option<(u64, Option<f64>, Option<f64>)>,
}

impl Outcome {
    fn of(qemu: QemuVersion, run: &MigrationRun, perfect: bool) -> Self {
        let (report, gaps, udp) = (report(run), gaps(run), udp(run));
        Self {
            qemu,
            perfect,
            proven: verdict(report.as_ref()) == "proven",
            lost: udp.map_or(0, |udp| udp.lost),
            duplicated: udp.map_or(0, |udp| udp.duplicated),
            reordered: udp.map_or(0, |udp| udp.reordered),
            tcp_intact: run.client.tcp().all(|tcp| tcp.intact),
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
/// When a run could not be made, or the evidence of a bad one can't be kept.
pub fn soak(screen: &Screen, options: &SoakOptions) -> Result<bool> {
    let plain_too = match options.interleave_plain {
        true => ",\neach followed by a plain QEMU migration",
        false => "",
    };
    screen.print(&format!(
        "{} migrations per QEMU version, {} UDP packets/s and {:.1} MB/s of TCP{plain_too}\n",
        options.runs,
        options.scene.pps,
        options.scene.tcp as f64 / 1e6,
    ))?;
    screen.print(&line([
        "run", "QEMU", "verdict", "lost", "dup", "reord", "TCP", "downtime", "blackout", "gap",
        "calm",
    ]))?;
    let mut outcomes = Vec::new();
    for run in 1..=options.runs {
        for qemu in &options.qemus {
            outcomes.push(one(screen, options, run, *qemu)?);
        }
    }
    screen.print("")?;
    screen.print(&summary(options, &outcomes))?;
    let perfect = outcomes.iter().filter(|outcome| outcome.perfect).count();
    screen.print(&format!(
        "\n  {perfect} of {} runs were perfect",
        outcomes.len()
    ))?;
    Ok(perfect == outcomes.len())
}

fn one(screen: &Screen, options: &SoakOptions, number: u32, qemu: QemuVersion) -> Result<Outcome> {
    let scene = Scene {
        qemu,
        ..options.scene
    };
    let run = scene
        .by_katamaran()
        .with_context(|| format!("run {number}, QEMU {qemu}"))?;
    let faults = faults(&run);
    let mut outcome = Outcome::of(qemu, &run, faults.is_empty());
    let (number_text, version) = (number.to_string(), qemu.to_string());
    screen.print(&line([
        &number_text,
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
    if !faults.is_empty() {
        for fault in &faults {
            screen.print(&format!("      {fault}"))?;
        }
        screen.print(&format!(
            "      kept: {}",
            keep(&run, number, qemu)?.display()
        ))?;
    }
    if options.interleave_plain {
        let plain = scene
            .by_plain_means(Baseline::Plain)
            .with_context(|| format!("plain run {number}, QEMU {qemu}"))?;
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
        outcome.plain = Some((plain.client.lost(), gap, plain.downtime_ms));
    }
    Ok(outcome)
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

/// Keeps what both sides said and reported of a run that was not perfect.
fn keep(run: &MigrationRun, number: u32, qemu: QemuVersion) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("katamaran-soak-{}", now_ns() / 1_000_000));
    let dir = dir.join(format!("run-{number}-qemu-{qemu}"));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let keep = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    keep("run.json", &serde_json::to_string_pretty(run)?)?;
    for (name, side) in [("source", &run.source), ("dest", &run.dest)] {
        let Some(side) = side else { continue };
        keep(&format!("{name}.stdout"), &side.stdout)?;
        keep(&format!("{name}.stderr"), &side.stderr)?;
        if let Some(report) = &side.report {
            keep(
                &format!("{name}.json"),
                &serde_json::to_string_pretty(report)?,
            )?;
        }
    }
    if let Some(silence) = &run.silence {
        keep("silence.txt", silence)?;
    }
    Ok(dir)
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
        ("plain QEMU: downtime, ms", |o| o.plain?.2),
        ("plain QEMU: client gap, ms", |o| o.plain?.1),
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
    let plain = Spread::of(of.iter().filter_map(|outcome| outcome.plain?.1))?;
    let lost: u64 = of.iter().filter_map(|outcome| Some(outcome.plain?.0)).sum();
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
