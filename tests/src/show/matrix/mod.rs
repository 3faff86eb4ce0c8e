//! One migration for each kernel, tunnel, family and wiring, mostly with the stand-in for QEMU, in one table.
//!
//! On this machine's own kernel and, each in a VM of its own, on the lab's others; there once with sch_plug and once without.

mod cell;
mod kernel;

use std::path::Path;

use anyhow::Result;
use clap::Args;

use self::cell::{Cell, FAMILIES, Load, Spec, TUNNELS, play};
use super::elsewhere::{self, Place};
use super::screen::Screen;
use super::table::Table;
use crate::lab::{Kernel, QemuVersion, Wiring};

/// Packets per second, unless a guest is emulated on an emulated machine.
const PPS: u32 = 2000;
const VHOST_DEVICE: &str = "/dev/vhost-net";

/// What is to be played.
#[derive(Debug, Clone, Args)]
pub struct MatrixArguments {
    /// Only this kernel: 6.1, 6.12, or own for the machine's (may be repeated) [default: all]
    #[arg(long)]
    kernel: Vec<Place>,
    /// UDP packets per second; a TCP stream with full-size segments comes beside them [default: 2000, and 20 to a guest that is emulated on
    /// an emulated machine]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pps: Option<u32>,
    /// A cross-section: each tunnel with each family, on the wirings in turn, with another one to begin with on each kernel
    #[arg(long)]
    quick: bool,
    /// Which wiring the cross-section begins with
    #[arg(long, hide = true, default_value_t = 0)]
    turn: usize,
    /// Only this tunnel: ipip, vxlan or gre (may be repeated) [default: all]
    #[arg(long, value_parser = TUNNELS)]
    tunnel: Vec<String>,
    /// Only this family: IPv4 or IPv6 (may be repeated) [default: both]
    #[arg(long, value_parser = FAMILIES)]
    family: Vec<String>,
    /// Only this wiring: tap, bridge, pod, pod-bridge or pod-peer (may be repeated) [default: all]
    #[arg(long)]
    wiring: Vec<Wiring>,
    /// QEMU: stand-in, which needs no guest, 7.2 or 10.0
    #[arg(long, default_value = "stand-in")]
    qemu: QemuVersion,
    /// Whether the kernel moves the packets between tap and guest (vhost-net), or QEMU; on takes a real QEMU [default: off, and on for a
    /// cross-section on the lab's kernels]
    #[arg(long, value_parser = ["on", "off"])]
    vhost: Option<String>,
    /// Only with this buffer: plug or ring [default: whatever the kernel has]
    #[arg(long, value_parser = ["plug", "ring"])]
    buffer: Option<String>,
    /// Only the first cells of each kernel
    #[arg(long)]
    at_most: Option<usize>,
    /// Where a kernel does not come up, say so and go on
    #[arg(long)]
    skip: bool,
    /// Only on the kernel that runs, a line of JSON for each
    #[arg(long, hide = true)]
    cells: bool,
    /// Only on this one of the lab's kernels, among those that are asked for
    #[arg(skip)]
    only_on: Option<Kernel>,
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
        let load = Load {
            qemu: self.qemu,
            pps: self.pps.unwrap_or(PPS),
        };
        self.specs().into_iter().map(move |spec| play(&spec, load))
    }

    fn is_vhost(&self) -> bool {
        self.vhost.as_deref() == Some("on")
    }

    /// What QEMU moves the packets in, and what vhost-net does: each kernel is booted for either.
    fn parts(&self) -> Vec<Self> {
        let off = Self {
            vhost: Some("off".to_owned()),
            ..self.clone()
        };
        let on = Self {
            vhost: Some("on".to_owned()),
            // The stand-in does what QEMU does, not what the kernel does for it.
            qemu: match self.qemu {
                QemuVersion::StandIn => QemuVersion::V10_0,
                real => real,
            },
            ..self.clone()
        };
        match (self.vhost.as_deref(), self.quick) {
            (Some("on"), _) => vec![on],
            (Some(_), _) => vec![off],
            // A cell takes more than a minute.
            (None, false) => vec![off, Self { quick: true, ..on }],
            (None, true) => vec![off, on.a_single_cell()],
        }
    }

    /// On the newest of the lab's kernels.
    fn a_single_cell(self) -> Self {
        Self {
            at_most: Some(1),
            only_on: Some(Kernel::V6_12),
            ..self
        }
    }

    fn specs(&self) -> Vec<Spec> {
        let wanted = |wiring: &Wiring| self.wiring.is_empty() || self.wiring.contains(wiring);
        let wirings: Vec<Wiring> = Wiring::ALL.into_iter().filter(wanted).collect();
        let mut specs = Vec::new();
        for tunnel in TUNNELS {
            for family in FAMILIES {
                // Counted before anything is left out, so that a cell is the same whatever else is asked for.
                let turn = (self.turn + specs.len()) % wirings.len().max(1);
                for (at, wiring) in wirings.iter().enumerate() {
                    if !self.quick || at == turn {
                        specs.push(Spec {
                            tunnel,
                            family,
                            wiring: *wiring,
                            vhost: self.is_vhost(),
                        });
                    }
                }
            }
        }
        let is_in = |list: &[String], one: &str| list.is_empty() || list.iter().any(|l| l == one);
        specs.retain(|spec| is_in(&self.tunnel, spec.tunnel) && is_in(&self.family, spec.family));
        specs.truncate(self.at_most.unwrap_or(usize::MAX));
        specs
    }

    fn has(&self, place: Place) -> bool {
        let only_on = self.only_on.is_none_or(|only| place == Place::Vm(only));
        only_on && (self.kernel.is_empty() || self.kernel.contains(&place))
    }
}

fn matrix(screen: &Screen, options: &MatrixArguments) -> Result<bool> {
    let mut cells = Vec::new();
    let parts = options.parts();
    for part in parts.iter().filter(|part| part.has(Place::Own)) {
        if part.is_vhost() && !Path::new(VHOST_DEVICE).exists() {
            screen.step("SKIPPED", "vhost-net: this machine's own kernel has none")?;
            continue;
        }
        screen.step("kernel", &format!("this machine's own{}", with(part)))?;
        for cell in part.cells_here() {
            tell(screen, &cell)?;
            cells.push(cell);
        }
    }
    for kernel in Kernel::ALL {
        for part in parts.iter().filter(|part| part.has(Place::Vm(kernel))) {
            cells.extend(kernel::cells_on(screen, kernel, part)?);
        }
    }
    screen.print(&format!("\n{}", table(&cells).render()))?;
    for bad in cells.iter().filter(|cell| !cell.good) {
        screen.print(&format!("\nBAD {} {}\n{}", bad.kernel, bad.name, bad.said))?;
    }
    let good = cells.iter().filter(|cell| cell.good).count();
    let reset = cells.iter().filter(|cell| cell.queue_reset).count();
    screen.print(&format!(
        "\n  {good} of {} cells as they have to be: nothing lost, doubled or out of order, and proven",
        cells.len()
    ))?;
    if cells.iter().any(|cell| cell.vhost) {
        screen.print("  vhost off: the stand-in for QEMU, unless told otherwise; on: a real QEMU and a guest, each emulated, at a slower rate")?;
    }
    if reset > 0 {
        screen.print(&format!(
            "  * but for {reset}: before Linux 6.6 a tap outside of a pod can't be hooked without a reset of its queue"
        ))?;
    }
    Ok((options.skip || !cells.is_empty()) && good == cells.len())
}

fn with(part: &MatrixArguments) -> &'static str {
    if part.is_vhost() {
        ", with vhost-net"
    } else {
        ""
    }
}

/// As it goes: the table comes at the end, and a kernel takes minutes.
fn tell(screen: &Screen, cell: &Cell) -> Result<()> {
    screen.step(if cell.good { "cell" } else { "BAD" }, &cell.name)
}

fn table(cells: &[Cell]) -> Table {
    let mut table = Table::new(&[
        "kernel",
        "tunnel",
        "traffic",
        "wiring",
        "held in",
        "vhost",
        "sent",
        "redirected",
        "lost",
        "dup",
        "reord",
        "numbers",
        "TCP MB",
        "pause ms",
        "verdict",
    ]);
    for cell in cells {
        table.row(vec![
            cell.kernel.clone(),
            cell.tunnel.clone(),
            cell.family.clone(),
            cell.wiring.clone(),
            cell.buffer.clone(),
            if cell.vhost { "on" } else { "off" }.to_owned(),
            cell.sent.to_string(),
            cell.redirected.to_string(),
            cell.lost.to_string(),
            cell.duplicated.to_string(),
            cell.reordered.to_string(),
            cell.numbers
                .map_or_else(|| "-".into(), |(missing, late)| format!("{missing}/{late}")),
            cell.tcp.map_or_else(
                || "BROKEN".into(),
                |bytes| format!("{:.1}", bytes as f64 / 1e6),
            ),
            cell.downtime_ms
                .map_or_else(|| "?".into(), |ms| format!("{ms:.0}")),
            match cell.queue_reset {
                true => format!("{} *", cell.verdict),
                false => cell.verdict.clone(),
            },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: MatrixArguments,
    }

    #[test]
    fn the_cross_sections_of_all_kernels_have_each_tunnel_on_each_wiring() {
        let mut met = BTreeSet::new();
        for turn in [0, kernel::TURN, 2 * kernel::TURN] {
            let turn = format!("--turn={turn}");
            let line = Line::parse_from(["matrix", "--quick", turn.as_str()]);
            let specs = line.arguments.specs();
            assert_eq!(specs.len(), TUNNELS.len() * FAMILIES.len());
            met.extend(specs.iter().map(|s| (s.tunnel, s.wiring.to_string())));
        }
        assert_eq!(met.len(), TUNNELS.len() * Wiring::ALL.len());
    }

    #[test]
    fn vhost_net_is_in_the_table_unless_it_is_left_out() {
        let parts = |flags: &[&str]| {
            let line = ["matrix"].iter().chain(flags).copied();
            let parts = Line::parse_from(line).arguments.parts();
            let cells = parts.iter().map(|part| {
                let places = [
                    Place::Own,
                    Place::Vm(Kernel::V6_1),
                    Place::Vm(Kernel::V6_12),
                ];
                let places = places.into_iter().filter(|place| part.has(*place)).count();
                (part.is_vhost(), places, part.specs().len(), part.qemu)
            });
            cells.collect::<Vec<_>>()
        };
        let all = TUNNELS.len() * FAMILIES.len() * Wiring::ALL.len();
        let (stand_in, real) = (QemuVersion::StandIn, QemuVersion::V10_0);
        assert_eq!(parts(&[]), [(false, 3, all, stand_in), (true, 3, 6, real)]);
        let quick = [(false, 3, 6, stand_in), (true, 1, 1, real)];
        assert_eq!(parts(&["--quick"]), quick);
        assert_eq!(parts(&["--vhost=off"]), [(false, 3, all, stand_in)]);
        let old = parts(&["--vhost=on", "--qemu=7.2", "--kernel=6.1"]);
        assert_eq!(old, [(true, 1, all, QemuVersion::V7_2)]);
        let elsewhere = parts(&["--quick", "--kernel=6.1"]);
        assert_eq!(elsewhere, [(false, 1, 6, stand_in), (true, 0, 1, real)]);
    }
}
