//! Migration after migration of a VM that writes to its disks all the time, and what they amount to.

use anyhow::Result;
use katamaran::migrate::report::Cutover;

use super::disks::DiskFigures;
use super::figures::{faults, ms, report, verdict};
use super::scene::Scene;
use super::screen::Screen;
use super::soak::{SoakOptions, evidence_dir, tell_end, tell_failure, tell_faults};
use super::spread::Spread;
use super::table::Table;
use crate::lab::QemuVersion;
use crate::run::{DiskLoad, MigrationRun};

/// The default of `--downtime`.
const LIMIT_MS: f64 = 50.0;

/// What is kept of one run.
#[derive(Debug)]
struct Outcome {
    qemu: QemuVersion,
    perfect: bool,
    pause_ms: Option<f64>,
    cutover: Cutover,
    figures: DiskFigures,
}

/// Runs all of them, one line each, and prints the table. Returns whether every run was perfect.
///
/// # Errors
///
/// When the evidence of a bad run can't be kept, or nobody reads what is printed.
pub(super) fn disk_soak(screen: &Screen, options: &SoakOptions) -> Result<bool> {
    screen.print(&heading(options))?;
    screen.print(&line([
        "run", "QEMU", "verdict", "acked", "rate/s", "lost", "torn", "pause", "stall", "write",
        "backlog", "MiB/s",
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
            outcomes.push(migrate(screen, &scene, run, &dir)?);
        }
    }
    screen.print("")?;
    screen.print(&summary(options, &outcomes))?;
    let perfect = outcomes.iter().filter(|outcome| outcome.perfect).count();
    tell_end(screen, perfect, outcomes.len())
}

fn heading(options: &SoakOptions) -> String {
    let Some(disks) = options.scene.disks else {
        return String::new();
    };
    let rate = match disks.rate {
        DiskLoad::FLAT_OUT => "as many 4 KiB records as it can".to_owned(),
        rate => format!("{rate} 4 KiB records a second"),
    };
    format!(
        "{} x katamaran per QEMU version, {} UDP packets/s; V writes {rate}\n\
         to each of {} drives of {} MiB, synchronously\n",
        options.runs, options.scene.pps, disks.count, disks.mebibytes,
    )
}

fn migrate(
    screen: &Screen,
    scene: &Scene,
    number: u32,
    evidence: &std::path::Path,
) -> Result<Outcome> {
    let (number, version) = (number.to_string(), scene.qemu.to_string());
    let run = match scene.by_katamaran() {
        Ok(run) => run,
        Err(error) => {
            tell_failure(screen, evidence, &number, &version, &error)?;
            MigrationRun::default()
        }
    };
    let figures = DiskFigures::of(&run).unwrap_or_default();
    let mut faults = faults(&run);
    if figures.backlog != Some(0) {
        let backlog = count(figures.backlog);
        faults.push(format!("the backlog at COMMIT is {backlog} bytes"));
    }
    let outcome = Outcome {
        qemu: scene.qemu,
        perfect: faults.is_empty(),
        pause_ms: run.downtime_ms,
        cutover: report(&run).map(|r| r.cutover).unwrap_or_default(),
        figures,
    };
    if run.source.is_none() {
        return Ok(outcome);
    }
    screen.print(&line([
        &number,
        &version,
        verdict(report(&run).as_ref()),
        &figures.acknowledged.to_string(),
        &whole(figures.rate),
        &figures.lost.to_string(),
        &figures.torn.to_string(),
        &ms(outcome.pause_ms),
        &ms(figures.stall_ms),
        &ms(figures.write_ms),
        &count(figures.backlog),
        &whole(figures.mirrored),
    ]))?;
    tell_faults(screen, evidence, &faults, &run)?;
    Ok(outcome)
}

fn line(cells: [&str; 12]) -> String {
    let [
        run,
        qemu,
        verdict,
        acked,
        rate,
        lost,
        torn,
        pause,
        stall,
        write,
        backlog,
        mirrored,
    ] = cells;
    format!(
        "{run:>4} {qemu:<4} {verdict:<8}{acked:>7}{rate:>7}{lost:>5}{torn:>5}\
         {pause:>8}{stall:>8}{write:>8}{backlog:>8}{mirrored:>6}"
    )
}

/// A count, or a dash.
fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A rounded figure, or a dash.
fn whole(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

fn summary(options: &SoakOptions, outcomes: &[Outcome]) -> String {
    let mut counts = Table::new(&[
        "QEMU",
        "runs",
        "perfect",
        "acknowledged",
        "lost",
        "torn",
        "pause <= 50 ms",
    ]);
    let mut spreads = Table::new(&["", "min", "median", "max"]);
    for qemu in &options.qemus {
        let of: Vec<&Outcome> = outcomes.iter().filter(|o| o.qemu == *qemu).collect();
        let sum = |figure: fn(&Outcome) -> u64| {
            let sum: u64 = of.iter().map(|outcome| figure(outcome)).sum();
            sum.to_string()
        };
        counts.row(vec![
            qemu.to_string(),
            of.len().to_string(),
            sum(|o| o.perfect.into()),
            sum(|o| o.figures.acknowledged),
            sum(|o| o.figures.lost as u64),
            sum(|o| o.figures.torn as u64),
            sum(|o| o.pause_ms.is_some_and(|pause| pause <= LIMIT_MS).into()),
        ]);
        for (name, figure) in FIGURES {
            let spread = Spread::of(of.iter().filter_map(|outcome| figure(outcome)));
            spreads.row(vec![
                format!("{qemu}: {name}"),
                ms(spread.map(|spread| spread.min)),
                ms(spread.map(|spread| spread.median)),
                ms(spread.map(|spread| spread.max)),
            ]);
        }
    }
    format!("{}\n\n{}", counts.render(), spreads.render())
}

type Figure = fn(&Outcome) -> Option<f64>;

const FIGURES: [(&str, Figure); 9] = [
    ("pause, ms", |o| o.pause_ms),
    ("of it, ending the mirrors", |o| {
        Some(o.cutover.disks_ended_ms? - o.cutover.stopped_ms?)
    }),
    ("then, closing the exports", |o| {
        Some(o.cutover.handed_over_ms? - o.cutover.disks_ended_ms?)
    }),
    ("then, loading V", |o| {
        Some(o.cutover.loaded_ms? - o.cutover.handed_over_ms?)
    }),
    ("client's longest write stall, ms", |o| o.figures.stall_ms),
    ("V's longest write, ms", |o| o.figures.write_ms),
    ("its end, ms after STOP", |o| o.figures.write_at_ms),
    ("records/s before STOP", |o| o.figures.rate),
    ("mirror, MiB/s", |o| o.figures.mirrored),
];
