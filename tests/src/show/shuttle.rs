//! The same VM, there and back again, under one load that never ends: nothing may add up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::figures::ms;
use super::screen::Screen;
use super::table::Table;
use crate::bpf;
use crate::lab::{LabConfig, QemuVersion, Wiring};
use crate::run::{Migration, MigrationOptions, Stage, StageOptions, TrafficSpec};

/// QEMU's memory at the end of the soak, as a multiple of what it was after the first there and back. It takes more as long
/// as it runs; ten times that is a leak.
const MOST_MEMORY: f64 = 1.25;
/// A line for every so many migrations.
const EVERY: u32 = 10;
/// How long the kernel may take to free what nobody has any more.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// Migrations that are not compared: caches are filled, and both taps have their long ring.
const WARM_UP: usize = 2;

/// What to run.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShuttleOptions {
    /// How many migrations, to and fro
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(4..))]
    runs: u32,
    /// QEMU version: 7.2, 10.0 or stand-in, which needs no guest
    #[arg(long, default_value = "10.0")]
    qemu: QemuVersion,
    /// How V hangs on its nodes: tap, bridge, pod, pod-bridge or pod-peer
    #[arg(long, default_value = "tap")]
    wiring: Wiring,
    /// UDP packets per second, over each of IPv4 and IPv6
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
}

/// What there is after a migration.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Footprint {
    /// Descriptors of V's QEMU.
    descriptors: usize,
    /// Its resident memory, MiB.
    memory_mib: u64,
    /// Programs, maps and links of the machine.
    bpf: [u64; 3],
    /// Kernel memory that can't be reclaimed, MiB.
    kernel_mib: u64,
}

/// Migrates V again and again, a line each. Returns whether nothing was lost, each was proven, and nothing added up.
///
/// # Errors
///
/// When the lab fails, V is lost, or nobody reads what is printed.
pub fn shuttle(screen: &Screen, options: ShuttleOptions) -> Result<bool> {
    screen.print(&format!(
        "one VM, {} migrations there and back, {} UDP packets/s over IPv4, as many over IPv6, and TCP\n",
        options.runs, options.pps
    ))?;
    let mut stage = Stage::set(StageOptions {
        lab: LabConfig {
            qemu: options.qemu,
            wiring: options.wiring,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: options.pps,
            pps_v6: options.pps,
            tcp_v4: Some(100_000),
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })?;
    let mut problems = 0_u32;
    let mut after = Vec::new();
    let mut downtimes = Vec::new();
    for number in 1..=options.runs {
        if number > 1 {
            stage.turn_round()?;
        }
        let migration = Migration::begin(&mut stage, &MigrationOptions::default())?;
        let (ended, timeline) = migration.end()?;
        let said = format!("{}{}", ended.source.stderr, ended.dest.stderr);
        ensure!(
            timeline.resume_ns.is_some(),
            "migration {number} did not bring V over\n{said}"
        );
        let verdicts = [&ended.source, &ended.dest].map(|side| {
            let verdict = side.report.as_ref()?["verdict"].as_str()?;
            Some(verdict.to_owned())
        });
        let good = verdicts.iter().all(|v| v.as_deref() == Some("proven"))
            && (ended.source.status, ended.dest.status) == (Some(0), Some(0))
            && ended.leaks.is_empty();
        if !good {
            problems += 1;
            screen.print(&format!(
                "BAD   {number}: {verdicts:?}, exits {:?}, left {:?}\n{said}",
                [ended.source.status, ended.dest.status],
                ended.leaks
            ))?;
        }
        downtimes.extend(timeline.downtime_ms());
        let footprint = footprint(&mut stage)?;
        if number % EVERY == 0 || number <= 2 {
            screen.print(&line(number, timeline.downtime_ms(), footprint))?;
        }
        after.push(footprint);
    }
    let first = after[WARM_UP - 1];
    let last = settled(&mut stage, first)?;
    let (client, silence) = stage.finish_traffic()?;
    let flat = last.bpf == first.bpf
        && last.descriptors <= first.descriptors
        && last.memory_mib as f64 <= first.memory_mib as f64 * MOST_MEMORY
        && last.kernel_mib as f64 <= first.kernel_mib as f64 * MOST_MEMORY;
    screen.print(&format!("\n{}", table(first, last).render()))?;
    let sum = |count: fn(&crate::traffic::UdpResult) -> u64| client.udp().map(count).sum::<u64>();
    downtimes.sort_by(f64::total_cmp);
    let intact = client.tcp().all(|tcp| tcp.intact);
    screen.print(&format!(
        "\n  {} migrations, {problems} with problems; pause {} ms in the median, {} at most\n  \
         the client: {} packets sent, {} lost, {} duplicated, {} reordered; TCP {}\n  {}",
        options.runs,
        ms(downtimes.get(downtimes.len() / 2).copied()),
        ms(downtimes.last().copied()),
        sum(|udp| udp.sent),
        sum(|udp| udp.lost),
        sum(|udp| udp.duplicated),
        sum(|udp| udp.reordered),
        if intact { "intact" } else { "BROKEN" },
        if flat {
            "nothing adds up"
        } else {
            "SOMETHING ADDS UP"
        }
    ))?;
    Ok(problems == 0 && flat && silence.is_none() && client.is_perfect())
}

fn line(number: u32, downtime_ms: Option<f64>, now: Footprint) -> String {
    format!(
        "{number:>5}  pause {:>6} ms  QEMU {} MiB, {} descriptors  kernel {} MiB, {:?} programs, maps, links",
        ms(downtime_ms),
        now.memory_mib,
        now.descriptors,
        now.kernel_mib,
        now.bpf
    )
}

fn table(first: Footprint, last: Footprint) -> Table {
    let mut table = Table::new(&[
        "after",
        "QEMU MiB",
        "descriptors",
        "kernel MiB",
        "programs",
        "maps",
        "links",
    ]);
    for (name, now) in [("there and back", first), ("the last one", last)] {
        let mut row = vec![
            name.to_owned(),
            now.memory_mib.to_string(),
            now.descriptors.to_string(),
            now.kernel_mib.to_string(),
        ];
        row.extend(now.bpf.map(|count| count.to_string()));
        table.row(row);
    }
    table
}

/// With V on B.
fn footprint(stage: &mut Stage) -> Result<Footprint> {
    let pid = stage.guest_b.process().pid();
    let descriptors =
        std::fs::read_dir(format!("/proc/{pid}/fd")).context("count QEMU's descriptors")?;
    Ok(Footprint {
        descriptors: descriptors.count(),
        memory_mib: kilobytes(&format!("/proc/{pid}/status"), "VmRSS:")? / 1024,
        bpf: bpf::objects()?,
        kernel_mib: kilobytes("/proc/meminfo", "SUnreclaim:")? / 1024,
    })
}

/// The kernel frees programs and maps some time after the last who had them.
fn settled(stage: &mut Stage, first: Footprint) -> Result<Footprint> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let now = footprint(stage)?;
        if now.bpf == first.bpf || Instant::now() >= deadline {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kilobytes(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| {
        line.strip_prefix(name)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    value.with_context(|| format!("{path} has no {name}"))
}
