//! katamaran, and what is left of it when one thing is taken away: each has to lose packets, or the thing is there for nothing.
//!
//! Each scene is played by katamaran, which loses none, and then without one thing, on the same stage and under the same traffic.
//!
//! | scene | where | what is hard about it |
//! |---|---|---|
//! | burst | a real guest, this kernel | a pause of about a second, and packets that come at once in it |
//! | slow guest | the same | V is behind with its packets when they are turned away; here what does not reach V is lost |
//! | plug | the stand-in, 6.12 | the kernel's own sch_plug, which takes as many bytes as it is told |

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::elsewhere::{self, Place, Played, release};
use super::screen::Screen;
use super::table::Table;
use crate::lab::{Kernel, LabConfig, QemuVersion};
use crate::run::{
    Ablation, AblationOptions, Baseline, BaselineOptions, MigrationRun, StageOptions, TrafficSpec,
    run_ablation, run_baseline,
};

/// The path between the nodes, so that the pause lasts. V writes memory faster than that.
/// For all cells of one kernel, its boot included.
const DEADLINE: Duration = Duration::from_secs(900);
const PATH_BYTES_PER_SECOND: u64 = 20_000_000;
const DIRTY: (u64, u64) = (30, 16);
/// More than the ring of a tap takes by default.
const BURST: u64 = 3000;
/// More than V's receive ring takes: the rest waits in the tap's.
const BEHIND: u32 = 3000;
/// What a plain QEMU may pause for; it spends all of that where the path is slow.
const PLAIN_DOWNTIME_LIMIT_MS: u64 = 1500;
/// Of the plug's scene, where everything is emulated.
const PLUG_PPS: u32 = 1000;
/// Of each packet in the plug's scene: a pause of some milliseconds fills a small plug.
const LARGE_PACKET: usize = 1400;

/// What is to be played.
#[derive(Debug, Clone, Args)]
pub struct AblationArguments {
    /// Only this scene: burst, slow-guest or plug (may be repeated) [default: all]
    #[arg(long, value_parser = Scene::ALL.map(Scene::flag))]
    scene: Vec<String>,
    /// UDP packets per second, where a real guest answers them
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
    /// Which QEMU the real guests run in: 7.2 or 10.0
    #[arg(long, default_value = "10.0")]
    qemu: QemuVersion,
    /// Where a kernel does not come up, say so and go on
    #[arg(long)]
    skip: bool,
    /// Only the plug's scene, on the kernel that runs, a line of JSON for each run
    #[arg(long, hide = true)]
    cells: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    Burst,
    SlowGuest,
    Plug,
}

impl Scene {
    const ALL: [Self; 3] = [Self::Burst, Self::SlowGuest, Self::Plug];

    fn flag(self) -> &'static str {
        match self {
            Self::Burst => "burst",
            Self::SlowGuest => "slow-guest",
            Self::Plug => "plug",
        }
    }

    fn ways(self) -> &'static [Way] {
        const OURS: Way = Way::Katamaran(Ablation::Nothing);
        match self {
            Self::Burst => &[
                OURS,
                Way::Katamaran(Ablation::Redirect),
                Way::Plain(Baseline::Plain),
                Way::Plain(Baseline::AfterStop),
                Way::Katamaran(Ablation::LongRing),
            ],
            Self::SlowGuest => &[OURS, Way::Plain(Baseline::Undrained)],
            Self::Plug => &[
                OURS,
                Way::Katamaran(Ablation::LargePlug),
                Way::Plain(Baseline::Plugged),
            ],
        }
    }

    fn place(self) -> Place {
        match self {
            Self::Burst | Self::SlowGuest => Place::Own,
            Self::Plug => Place::Vm(Kernel::V6_12),
        }
    }
}

/// How V is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Katamaran(Ablation),
    Plain(Baseline),
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Katamaran(Ablation::Nothing) => "katamaran",
            Self::Katamaran(Ablation::Redirect) => "katamaran, no redirect",
            Self::Katamaran(Ablation::LongRing) => "katamaran, txqueuelen 1000",
            Self::Katamaran(Ablation::LargePlug) => "katamaran, plug of 32768 bytes",
            Self::Plain(Baseline::Plain) => "plain QEMU",
            Self::Plain(Baseline::AfterStop) => "tunnel after STOP",
            Self::Plain(Baseline::Plugged) => "plug of 32768, tunnel after STOP",
            Self::Plain(Baseline::Undrained) => "tunnel before STOP, no drain",
        }
    }

    fn is_ours(self) -> bool {
        self == Self::Katamaran(Ablation::Nothing)
    }
}

/// One run, judged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Cell {
    kernel: String,
    scene: String,
    way: String,
    sent: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    downtime_ms: Option<f64>,
    drained_ms: Option<f64>,
    verdict: String,
    good: bool,
    /// What is known about it, if it is not good.
    said: String,
}

impl AblationArguments {
    /// Plays, and prints. Returns whether katamaran lost nothing, and everything else lost something and did not claim the
    /// opposite.
    ///
    /// # Errors
    ///
    /// When a kernel does not come up and may not be skipped, or it dies.
    pub fn run(&self) -> Result<bool> {
        let screen = Screen::default();
        if self.cells {
            elsewhere::tell(&screen, self.cells_of(Scene::Plug))?;
            return Ok(true);
        }
        let mut cells: Vec<Cell> = Vec::new();
        let wanted = |scene: &Scene| {
            self.scene.is_empty() || self.scene.iter().any(|flag| flag == scene.flag())
        };
        for scene in Scene::ALL.into_iter().filter(wanted) {
            match scene.place() {
                Place::Own => {
                    for way in scene.ways() {
                        screen.step(scene.flag(), way.name())?;
                        cells.push(self.cell(scene, *way));
                    }
                }
                Place::Vm(kernel) => {
                    screen.step(scene.flag(), &format!("on {kernel}"))?;
                    cells.extend(self.cells_on(kernel, scene)?);
                }
            }
        }
        screen.print(&format!("\n{}", table(&cells).render()))?;
        for bad in cells.iter().filter(|cell| !cell.good) {
            screen.print(&format!("\nBAD {} {}\n{}", bad.scene, bad.way, bad.said))?;
        }
        Ok((self.skip || !cells.is_empty()) && cells.iter().all(|cell| cell.good))
    }

    fn cells_of(&self, scene: Scene) -> impl Iterator<Item = Cell> {
        scene.ways().iter().map(move |way| self.cell(scene, *way))
    }

    fn cells_on(&self, kernel: Kernel, scene: Scene) -> Result<Vec<Cell>> {
        let arguments = ["ablations", "--cells"].map(OsString::from);
        let Some(Played {
            mut cells,
            cut_short,
        }) = elsewhere::play(
            kernel,
            "",
            DEADLINE,
            arguments,
            self.skip,
            |_: &Cell| Ok(()),
        )?
        else {
            return Ok(Vec::new());
        };
        // What was played counts, and what was not is bad.
        cells.extend(cut_short.map(|said| Cell {
            kernel: kernel.to_string(),
            scene: scene.flag().to_owned(),
            verdict: "not played to the end".to_owned(),
            said,
            ..Cell::default()
        }));
        Ok(cells)
    }

    fn cell(&self, scene: Scene, way: Way) -> Cell {
        let stage = self.stage(scene);
        let path = (scene != Scene::Plug).then_some(PATH_BYTES_PER_SECOND);
        let behind = (scene == Scene::SlowGuest).then_some(BEHIND);
        // Without a redirect, no network is faster; a redirect has to carry something.
        let converge_after = match way {
            Way::Katamaran(Ablation::Redirect) | Way::Plain(Baseline::Plain) => Duration::ZERO,
            _ => Duration::from_millis(500),
        };
        let run = match way {
            Way::Katamaran(ablation) => run_ablation(
                ablation,
                &AblationOptions {
                    stage,
                    path,
                    behind,
                    converge_after,
                },
            ),
            Way::Plain(baseline) => run_baseline(
                baseline,
                &BaselineOptions {
                    stage,
                    downtime_limit_ms: PLAIN_DOWNTIME_LIMIT_MS,
                    path,
                    behind,
                    converge_after,
                    ..BaselineOptions::default()
                },
            ),
        };
        let cell = Cell {
            kernel: release(),
            scene: scene.flag().to_owned(),
            way: way.name().to_owned(),
            ..Cell::default()
        };
        match run {
            Ok(run) => judge(cell, way, &run),
            Err(error) => Cell {
                verdict: "no run".to_owned(),
                said: format!("{error:#}"),
                ..cell
            },
        }
    }

    fn stage(&self, scene: Scene) -> StageOptions {
        let traffic = TrafficSpec {
            pps_v4: self.pps,
            ..TrafficSpec::default()
        };
        let lab = LabConfig {
            qemu: self.qemu,
            dirty: Some(DIRTY),
            ..LabConfig::default()
        };
        match scene {
            Scene::Burst => StageOptions {
                lab,
                traffic: TrafficSpec {
                    burst_at_stop: BURST,
                    ..traffic
                },
                ..StageOptions::default()
            },
            Scene::SlowGuest => StageOptions {
                lab,
                traffic,
                ..StageOptions::default()
            },
            Scene::Plug => StageOptions {
                lab: LabConfig {
                    qemu: QemuVersion::StandIn,
                    ..LabConfig::default()
                },
                traffic: TrafficSpec {
                    pps_v4: PLUG_PPS,
                    size: LARGE_PACKET,
                    ..traffic
                },
                ..StageOptions::default()
            },
        }
    }
}

fn judge(cell: Cell, way: Way, run: &MigrationRun) -> Cell {
    let report = run.source.as_ref().and_then(|side| side.report.clone());
    let report = report.unwrap_or_default();
    let verdicts: Vec<&str> = [&run.source, &run.dest]
        .into_iter()
        .flatten()
        .map(|side| side.report.as_ref().unwrap_or(&Value::Null))
        .map(|report| report["verdict"].as_str().unwrap_or("none"))
        .collect();
    let sum = |count: fn(&crate::traffic::UdpResult) -> u64| run.client.udp().map(count).sum();
    // An emulator that is halted again and again loses answers, which no way of moving V is to blame for.
    let lost = match cell.scene == Scene::SlowGuest.flag() {
        true => run.missed_by_guest().unwrap_or(0),
        false => run.client.lost(),
    };
    // What the guest itself has dropped is not lost by any way of moving it.
    let on_the_way = lost.saturating_sub(run.dropped_in_guest().unwrap_or(0));
    let moved = run.silence.is_none() && run.resume_ns.is_some();
    let good = moved
        && match way {
            _ if way.is_ours() => {
                let orderly = run
                    .client
                    .udp()
                    .all(|udp| udp.duplicated + udp.reordered == 0);
                lost == 0 && orderly && run.received_by_guest.is_some() && verdicts == ["proven"; 2]
            }
            Way::Katamaran(_) => {
                on_the_way > 0
                    && verdicts.len() == 2
                    && verdicts
                        .iter()
                        .all(|v| matches!(*v, "violated" | "unproven"))
            }
            Way::Plain(_) => on_the_way > 0,
        };
    Cell {
        sent: sum(|udp| udp.sent),
        lost,
        duplicated: sum(|udp| udp.duplicated),
        reordered: sum(|udp| udp.reordered),
        downtime_ms: run.downtime_ms,
        drained_ms: report["cutover"]["drained_ms"].as_f64(),
        verdict: verdicts.first().copied().unwrap_or("-").to_owned(),
        good,
        said: match good {
            true => String::new(),
            false => format!(
                "the guest dropped {:?} itself\n{}",
                run.dropped_in_guest(),
                run.told()
            ),
        },
        ..cell
    }
}

fn table(cells: &[Cell]) -> Table {
    let mut table = Table::new(&[
        "", "scene", "kernel", "sent", "lost", "dup", "reord", "drain ms", "pause ms", "verdict",
    ]);
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
    for cell in cells {
        table.row(vec![
            cell.way.clone(),
            cell.scene.clone(),
            cell.kernel.clone(),
            cell.sent.to_string(),
            cell.lost.to_string(),
            cell.duplicated.to_string(),
            cell.reordered.to_string(),
            ms(cell.drained_ms),
            ms(cell.downtime_ms),
            cell.verdict.clone(),
        ]);
    }
    table
}
