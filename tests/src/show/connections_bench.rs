//! What V's pause pays for its connections: migrations with and without them, in turns.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use katamaran::conntrack::{Added, Entry, Existing, Family, Table};

use super::screen::Screen;
use super::spread::Spread;
use super::table::Table as Printed;
use crate::lab::{GUEST_V4, LabConfig, Node, QemuVersion};
use crate::run::{Migration, MigrationOptions, Stage, StageOptions, TrafficSpec, settle};

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionsBenchOptions {
    /// Which QEMU.
    pub qemu: QemuVersion,
    /// How many idle connections of V the source knows.
    pub connections: usize,
    /// How many times each way.
    pub rounds: u32,
}

/// Runs all of them and prints the ratio. Returns it: the pause with `--conntrack on` over that with `off`, of the same
/// round; the median of all rounds.
///
/// # Errors
///
/// When a migration fails.
pub fn connections_bench(screen: &Screen, options: &ConnectionsBenchOptions) -> Result<f64> {
    screen.print(&format!(
        "{} x a VM with {} connections, with --conntrack off and on\n",
        options.rounds, options.connections
    ))?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // Who goes first takes turns.
        for turn in 0..2 {
            let carried = (round + turn) % 2 == 1;
            let (pause, told) = pause_ms(options, carried)?;
            let (name, pauses) = match carried {
                true => ("on", &mut with),
                false => ("off", &mut without),
            };
            pauses.push(pause);
            screen.print(&format!(
                "{:>4}  {name:<4} {pause:>7.1} ms{told}",
                round + 1
            ))?;
        }
    }
    let ratios = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with / without);
    let ratio = Spread::of(ratios).context("no rounds")?;
    let mut table = Printed::new(&["pause in ms", "min", "median", "max"]);
    for (name, pauses) in [("off", without), ("on", with)] {
        let spread = Spread::of(pauses).context("no rounds")?;
        let cell = |pause: f64| format!("{pause:.1}");
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

/// One migration: V's pause, and what was told of its connections.
fn pause_ms(options: &ConnectionsBenchOptions, carried: bool) -> Result<(f64, String)> {
    let how = MigrationOptions {
        stage: StageOptions {
            lab: LabConfig {
                qemu: options.qemu,
                guarded: true,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: 300,
                ..TrafficSpec::default()
            },
            ..StageOptions::default()
        },
        source_args: match carried {
            true => Vec::new(),
            false => vec!["--conntrack=off".to_owned()],
        },
        ..MigrationOptions::default()
    };
    let mut stage = Stage::set(how.stage.clone())?;
    let node = stage.lab.network().node(Node::A);
    node.run(|| make(options.connections))??;
    let (ended, timeline) = Migration::begin(&mut stage, &how)?.end()?;
    let run = settle(&mut stage, ended, &timeline)?;
    let pause = run.downtime_ms.context("V did not move")?;
    let report = run.source.and_then(|source| source.report);
    let conntrack = report.map(|report| report["conntrack"].clone());
    let told = conntrack.filter(|told| !told.is_null()).map(|told| {
        format!(
            "  ({} carried, {} told in the pause, the longest look {} ms)",
            told["carried"], told["told_in_pause"], told["longest_look_ms"]
        )
    });
    Ok((pause, told.unwrap_or_default()))
}

/// Puts idle connections of V into the table of this namespace.
fn make(count: usize) -> Result<()> {
    let mut table = Table::open()?;
    let known = table.list_of(Family::V4, &[GUEST_V4.into()], 1)?.entries;
    let mut entry = known.into_iter().next().context("V has a connection")?;
    entry.timeout = 600;
    let numbered = |number: usize| -> Result<Entry> {
        let [_, high, middle, low] = u32::try_from(number)?.to_be_bytes();
        let client = Ipv4Addr::new(172, 16 | high, middle, low).into();
        entry.original.source = client;
        entry.reply.destination = client;
        Ok(entry.clone())
    };
    let entries: Vec<Entry> = (0..count).map(numbered).collect::<Result<_>>()?;
    let added = table.add(&entries, Existing::Keep)?;
    ensure!(
        added.iter().all(|added| *added == Added::New),
        "all are new"
    );
    Ok(())
}
