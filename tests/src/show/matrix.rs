//! One migration for each kernel, tunnel and family, with the stand-in for QEMU, in one table.
//!
//! On this machine's own kernel and, each in a VM of its own, on the lab's others; there once with sch_plug and once without.

use std::ffi::OsString;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::elsewhere::{self, Place, Played, release};
use super::screen::Screen;
use super::table::Table;
use crate::lab::{Kernel, LabConfig, QemuVersion};
use crate::run::{MigrationOptions, MigrationRun, StageOptions, TrafficSpec, run_migration};

/// Has modprobe say that there is no such module.
const WITHOUT_PLUG: &str = "mkdir -p /etc/modprobe.d; echo 'install sch_plug /bin/false' >/etc/modprobe.d/katamaran-lab.conf";

const TUNNELS: [&str; 3] = ["ipip", "vxlan", "gre"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// What is to be played.
#[derive(Debug, Clone, Args)]
pub struct MatrixArguments {
    /// Only this kernel: 6.1, 6.12, or own for the machine's (may be repeated) [default: all]
    #[arg(long)]
    kernel: Vec<Place>,
    /// UDP packets per second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
    /// A cross-section: each tunnel with one family, and each kernel with what it has
    #[arg(long)]
    quick: bool,
    /// Only this tunnel: ipip, vxlan or gre (may be repeated) [default: all]
    #[arg(long, value_parser = TUNNELS)]
    tunnel: Vec<String>,
    /// Where a kernel does not come up, say so and go on
    #[arg(long)]
    skip: bool,
    /// Only on the kernel that runs, a line of JSON for each
    #[arg(long, hide = true)]
    cells: bool,
}

impl MatrixArguments {
    /// Plays, and prints. Returns whether nothing was lost, doubled or reordered in any cell, and each was proven.
    ///
    /// # Errors
    ///
    /// When a kernel does not come up and may not be skipped, or it dies.
    pub fn run(&self) -> Result<bool> {
        let screen = Screen::default();
        if self.cells {
            elsewhere::tell(&screen, self.cells_here())?;
            return Ok(true);
        }
        matrix(&screen, self)
    }

    /// Plays all cells on the kernel that runs, one after the other.
    fn cells_here(&self) -> impl Iterator<Item = Cell> {
        TUNNELS.iter().enumerate().flat_map(move |(at, tunnel)| {
            let families = FAMILIES.iter().enumerate();
            families
                .filter(move |(of, _)| !self.quick || at % FAMILIES.len() == *of)
                .filter(move |_| self.tunnel.is_empty() || self.tunnel.iter().any(|t| t == tunnel))
                .map(move |(_, family)| cell(tunnel, family, self.pps))
        })
    }

    fn has(&self, place: Place) -> bool {
        self.kernel.is_empty() || self.kernel.contains(&place)
    }
}

/// One cell, judged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Cell {
    kernel: String,
    tunnel: String,
    family: String,
    buffer: String,
    sent: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    redirected: u64,
    verdict: String,
    downtime_ms: Option<f64>,
    good: bool,
    /// What both sides said, if it is not good.
    said: String,
}

fn matrix(screen: &Screen, options: &MatrixArguments) -> Result<bool> {
    let mut cells = Vec::new();
    if options.has(Place::Own) {
        screen.step("kernel", "this machine's own")?;
        cells.extend(options.cells_here());
    }
    for kernel in Kernel::ALL
        .into_iter()
        .filter(|kernel| options.has(Place::Vm(*kernel)))
    {
        for set_up in ["", WITHOUT_PLUG] {
            if options.quick && !set_up.is_empty() {
                continue;
            }
            let without = if set_up.is_empty() {
                ""
            } else {
                ", sch_plug hidden"
            };
            screen.step("kernel", &format!("{kernel}{without}"))?;
            cells.extend(cells_on(kernel, set_up, options)?);
        }
    }
    let mut table = Table::new(&[
        "kernel",
        "tunnel",
        "traffic",
        "held in",
        "sent",
        "redirected",
        "lost",
        "dup",
        "reord",
        "pause ms",
        "verdict",
    ]);
    for cell in &cells {
        table.row(vec![
            cell.kernel.clone(),
            cell.tunnel.clone(),
            cell.family.clone(),
            cell.buffer.clone(),
            cell.sent.to_string(),
            cell.redirected.to_string(),
            cell.lost.to_string(),
            cell.duplicated.to_string(),
            cell.reordered.to_string(),
            cell.downtime_ms
                .map_or_else(|| "?".into(), |ms| format!("{ms:.0}")),
            cell.verdict.clone(),
        ]);
    }
    screen.print(&format!("\n{}", table.render()))?;
    for bad in cells.iter().filter(|cell| !cell.good) {
        screen.print(&format!(
            "\nBAD {} {} {}\n{}",
            bad.kernel, bad.tunnel, bad.family, bad.said
        ))?;
    }
    Ok((options.skip || !cells.is_empty()) && cells.iter().all(|cell| cell.good))
}

/// Boots a kernel that plays all of its cells.
fn cells_on(kernel: Kernel, set_up: &str, options: &MatrixArguments) -> Result<Vec<Cell>> {
    let mut arguments: Vec<OsString> = vec!["matrix".into(), "--cells".into()];
    arguments.push(format!("--pps={}", options.pps).into());
    if options.quick {
        arguments.push("--quick".into());
    }
    for tunnel in &options.tunnel {
        arguments.push(format!("--tunnel={tunnel}").into());
    }
    let Some(played) = elsewhere::play(kernel, set_up, arguments, options.skip)? else {
        return Ok(Vec::new());
    };
    let Played {
        mut cells,
        cut_short,
    } = played;
    // What was played counts, and what was not is bad.
    cells.extend(cut_short.map(|said| Cell {
        kernel: kernel.to_string(),
        verdict: "not played to the end".to_owned(),
        said,
        ..Cell::default()
    }));
    Ok(cells)
}

fn cell(tunnel: &str, family: &str, pps: u32) -> Cell {
    let (pps_v4, pps_v6) = if family == "IPv4" { (pps, 0) } else { (0, pps) };
    let run = run_migration(MigrationOptions {
        stage: StageOptions {
            lab: LabConfig {
                qemu: QemuVersion::StandIn,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4,
                pps_v6,
                ..TrafficSpec::default()
            },
            ..StageOptions::default()
        },
        // Looking at everything takes many processes, each of them long to start where this mostly runs.
        leaks: None,
        source_args: vec![format!("--tunnel-mode={tunnel}")],
        ..MigrationOptions::default()
    });
    match run {
        Ok(run) => judge(tunnel, family, &run),
        Err(error) => Cell {
            kernel: release(),
            tunnel: tunnel.to_owned(),
            family: family.to_owned(),
            verdict: "no stage".to_owned(),
            said: format!("{error:#}"),
            ..Cell::default()
        },
    }
}

fn judge(tunnel: &str, family: &str, run: &MigrationRun) -> Cell {
    let sides = [&run.source, &run.dest].map(|side| side.clone().unwrap_or_default());
    let reports = sides
        .each_ref()
        .map(|side| side.report.clone().unwrap_or_default());
    let verdicts = reports
        .each_ref()
        .map(|report| report["verdict"].as_str().unwrap_or("none"));
    let proven = verdicts == ["proven"; 2] && sides.iter().all(|side| side.status == Some(0));
    let redirected = reports[0]["ledger"]["s3"]["packets"].as_u64().unwrap_or(0);
    let good = proven && run.client.is_perfect() && redirected > 0;
    let sum = |count: fn(&crate::traffic::UdpResult) -> u64| run.client.udp().map(count).sum();
    Cell {
        kernel: release(),
        tunnel: tunnel.to_owned(),
        family: family.to_owned(),
        buffer: buffer(&reports[0]),
        sent: sum(|udp| udp.sent),
        lost: sum(|udp| udp.lost),
        duplicated: sum(|udp| udp.duplicated),
        reordered: sum(|udp| udp.reordered),
        redirected,
        verdict: verdicts[0].to_owned(),
        downtime_ms: run.downtime_ms,
        good,
        said: if good { String::new() } else { said(run) },
    }
}

/// What held the packets, in one word.
pub(super) fn buffer(report: &Value) -> String {
    let buffer = &report["buffer"];
    let kind = buffer
        .as_object()
        .and_then(|kinds| kinds.keys().next().cloned());
    let text = kind.unwrap_or_else(|| buffer.to_string());
    match text.as_str() {
        "tap-ring" => "ring".to_owned(),
        _ => text,
    }
}

pub(super) fn said(run: &MigrationRun) -> String {
    let sides = [("source", &run.source), ("dest", &run.dest)];
    let told = sides.map(|(name, side)| {
        let side = side.clone().unwrap_or_default();
        format!("--- {name}\n{}{}", side.stdout, side.stderr)
    });
    format!(
        "{}\nleaks: {:?}\n{}",
        run.summary(),
        run.leaks,
        told.concat()
    )
}
