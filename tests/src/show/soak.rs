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
use crate::traffic::now_ns;

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
    let plain_too = if options.interleave_plain {
        ", each followed by one of plain QEMU"
    } else {
        ""
    };
    screen.print(&format!(
        "{} migrations per QEMU version, {} UDP packets/s and {:.1} MB/s of TCP{plain_too}\n",
        options.runs,
        options.scene.pps,
        options.scene.tcp as f64 / 1e6,
    ))?;
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
    let name = format!("{number:>3} qemu {qemu:<4}");
    let run = scene
        .by_katamaran()
        .with_context(|| format!("run {number}, QEMU {qemu}"))?;
    let faults = faults(&run);
    let mut outcome = Outcome::of(qemu, &run, faults.is_empty());
    screen.print(&format!(
        "{name} {:<9} lost {} dup {} reord {}  downtime {}  blackout {}  gap {} ({})",
        verdict(report(&run).as_ref()),
        outcome.lost,
        outcome.duplicated,
        outcome.reordered,
        ms(outcome.downtime_ms),
        ms(outcome.blackout_ms),
        ms(outcome.gap_ms),
        ms(outcome.calm_ms),
    ))?;
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
        let (lost, gap) = (plain.client.lost(), gaps.map(|gaps| gaps.cutover.ms()));
        screen.print(&format!(
            "{:12} plain     lost {lost}  downtime {}  gap {} ({})",
            "",
            ms(plain.downtime_ms),
            ms(gap),
            ms(gaps.and_then(|gaps| gaps.calm_ms)),
        ))?;
        outcome.plain = Some((lost, gap, plain.downtime_ms));
    }
    Ok(outcome)
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
    let mut spreads = Table::new(&["min / median / max", "QEMU", "min", "median", "max"]);
    let mut ratios = String::new();
    for qemu in &options.qemus {
        let of: Vec<&Outcome> = outcomes.iter().filter(|o| o.qemu == *qemu).collect();
        let sum =
            |figure: fn(&Outcome) -> u64| of.iter().map(|o| figure(o)).sum::<u64>().to_string();
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
        let spread = |figure: &dyn Fn(&Outcome) -> Option<f64>| {
            Spread::of(of.iter().filter_map(|o| figure(o)))
        };
        let gap = spread(&|o| o.gap_ms);
        let plain_gap = spread(&|o| o.plain?.1);
        for (name, spread) in [
            ("downtime, ms", spread(&|o| o.downtime_ms)),
            ("blackout, ms", spread(&|o| o.blackout_ms)),
            ("client gap, ms", gap),
            ("calm gap, ms", spread(&|o| o.calm_ms)),
            ("first redirect, us", spread(&|o| o.first_redirect_us)),
            ("plain: downtime, ms", spread(&|o| o.plain?.2)),
            ("plain: client gap, ms", plain_gap),
        ] {
            let Some(spread) = spread else { continue };
            spreads.row(vec![
                name.to_owned(),
                qemu.to_string(),
                format!("{:.1}", spread.min),
                format!("{:.1}", spread.median),
                format!("{:.1}", spread.max),
            ]);
        }
        if let (Some(gap), Some(plain)) = (gap, plain_gap) {
            let lost: u64 = of.iter().filter_map(|o| Some(o.plain?.0)).sum();
            let ratio = gap.median / plain.median;
            let judgement = if ratio <= GOOD_RATIO {
                "within"
            } else {
                "ABOVE"
            };
            ratios.push_str(&format!(
                "\n\n  QEMU {qemu}: median client gap {ratio:.2} times that of plain QEMU, {judgement} {GOOD_RATIO}; \
                 plain QEMU lost {lost}",
            ));
        }
    }
    format!("{}\n\n{}{ratios}", counts.render(), spreads.render())
}
