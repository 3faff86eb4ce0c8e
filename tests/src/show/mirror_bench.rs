//! How fast katamaran mirrors a disk, beside QEMU that does it over TCP without katamaran.
//!
//! Both are played on the same kind of stage, one after the other in turns, and both are timed by
//! QEMU's own events: from the job's start to *ready*. The images are in the page cache and as large
//! on B as on A from the start, so that neither side waits for a disk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::screen::Screen;
use super::spread::Spread;
use super::table::Table;
use crate::lab::{Event, LabConfig, Node, QemuVersion};
use crate::run::{
    Destination, DriveOptions, Migration, MigrationOptions, Role, Stage, StageOptions, Storage,
    TrafficSpec, mirror_directly,
};

const DEADLINE: Duration = Duration::from_secs(120);

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct MirrorBenchOptions {
    /// Which QEMU.
    pub qemu: QemuVersion,
    /// MiB of the disk.
    pub mebibytes: u64,
    /// How many times each way.
    pub rounds: u32,
}

/// Runs all of them and prints the ratio. Returns it: katamaran's rate over QEMU's of the same round, the
/// median of all rounds. What the machine does besides changes from minute to minute, for both of a round alike.
///
/// # Errors
///
/// When a mirror does not become ready in time.
pub fn mirror_bench(screen: &Screen, options: &MirrorBenchOptions) -> Result<f64> {
    screen.print(&format!(
        "{} x a disk of {} MiB, mirrored by QEMU {}: over TCP by itself, and by katamaran\n",
        options.rounds, options.mebibytes, options.qemu
    ))?;
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // Who goes first takes turns.
        for turn in 0..2 {
            let by_katamaran = (round + turn) % 2 == 1;
            let seconds = if by_katamaran {
                by_katamaran_s(options)?
            } else {
                directly_s(options)?
            };
            let rate = options.mebibytes as f64 / seconds;
            let (name, rates) = match by_katamaran {
                true => ("katamaran", &mut relayed),
                false => ("QEMU over TCP", &mut direct),
            };
            rates.push(rate);
            screen.print(&format!(
                "{:>4}  {name:<14} {rate:>7.0} MiB/s  ({seconds:.3} s)",
                round + 1
            ))?;
        }
    }
    let mut table = Table::new(&["MiB/s", "min", "median", "max"]);
    let ratios = relayed
        .iter()
        .zip(&direct)
        .map(|(ours, qemus)| ours / qemus);
    let ratio = Spread::of(ratios).context("no rounds")?;
    for (name, rates) in [("QEMU over TCP", direct), ("katamaran", relayed)] {
        let spread = Spread::of(rates).context("no rounds")?;
        let cell = |rate: f64| format!("{rate:.0}");
        table.row(vec![
            name.to_owned(),
            cell(spread.min),
            cell(spread.median),
            cell(spread.max),
        ]);
    }
    screen.print(&format!(
        "\n{}\n\n  ratio {:.2} (median of the rounds; {:.2} to {:.2})",
        table.render(),
        ratio.median,
        ratio.min,
        ratio.max
    ))?;
    Ok(ratio.median)
}

fn stage(options: &MirrorBenchOptions) -> Result<Stage> {
    Stage::set(StageOptions {
        lab: LabConfig {
            qemu: options.qemu,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 0,
            ..TrafficSpec::default()
        },
        storage: Storage::Local(options.mebibytes),
        drives: DriveOptions {
            filled_mib: options.mebibytes,
            destination: Destination::Full,
            ..DriveOptions::default()
        },
        ..StageOptions::default()
    })
}

fn directly_s(options: &MirrorBenchOptions) -> Result<f64> {
    let mut stage = stage(options)?;
    mirror_directly(&mut stage)?;
    let deadline = Instant::now() + DEADLINE;
    let mut events = Vec::new();
    while seconds(&events).is_none() {
        let look = Instant::now() + Duration::from_millis(20);
        events.extend(stage.qmp_a.events_until(look)?);
        if Instant::now() >= deadline {
            bail!("the direct mirror is not ready in time");
        }
    }
    seconds(&events).context("the mirror is ready")
}

fn by_katamaran_s(options: &MirrorBenchOptions) -> Result<f64> {
    let mut stage = stage(options)?;
    let how = MigrationOptions {
        deadline: DEADLINE,
        leaks: None,
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &how)?;
    let times = |migration: &Migration<'_>| {
        let events = migration.timeline.events.iter();
        let on_a: Vec<Event> = events
            .filter(|(node, _)| *node == Node::A)
            .map(|(_, event)| event.clone())
            .collect();
        seconds(&on_a)
    };
    migration.look_until("the mirror is ready", |migration| {
        Ok(times(migration).is_some())
    })?;
    let taken = times(&migration).context("the mirror is ready")?;
    // What comes after is not measured here.
    migration
        .side(Role::Source)
        .process()
        .signal(Signal::SIGINT)
        .ok();
    migration.end()?;
    Ok(taken)
}

/// From the first job's start until one is ready.
fn seconds(events: &[Event]) -> Option<f64> {
    let started = events
        .iter()
        .find(|event| event.name == "JOB_STATUS_CHANGE" && event.data["status"] == "running")?;
    let ready = events
        .iter()
        .find(|event| event.name == "BLOCK_JOB_READY")?;
    Some(ready.at_ns.saturating_sub(started.at_ns) as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirror_takes_from_running_to_ready() {
        let event = |name: &str, status: &str, at_ns: u64| Event {
            name: name.to_owned(),
            at_ns,
            data: json!({ "status": status }),
        };
        let mut events = vec![
            event("JOB_STATUS_CHANGE", "created", 0),
            event("JOB_STATUS_CHANGE", "running", 1_000_000_000),
        ];
        assert_eq!(seconds(&events), None);
        events.push(event("BLOCK_JOB_READY", "", 3_500_000_000));
        assert_eq!(seconds(&events), Some(2.5));
    }
}
