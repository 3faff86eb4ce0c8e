//! One migration for each kernel, tunnel, family and wiring, mostly with the stand-in for QEMU, in one table.
//!
//! On this machine's own kernel and, each in a VM of its own, on the lab's others; there once with sch_plug and once without.

mod cell;
mod kernel;

use anyhow::Result;
use clap::Args;

use self::cell::{Cell, FAMILIES, Load, Spec, TUNNELS, play};
use super::elsewhere::{self, Place};
use super::screen::Screen;
use super::table::Table;
use crate::lab::{Kernel, QemuVersion, Wiring};

/// What is to be played.
#[derive(Debug, Clone, Args)]
pub struct MatrixArguments {
    /// Only this kernel: 6.1, 6.12, or own for the machine's (may be repeated) [default: all]
    #[arg(long)]
    kernel: Vec<Place>,
    /// UDP packets per second; a TCP stream with full-size segments comes beside them
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
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
    /// The kernel moves packets between tap and guest (vhost-net); takes a real QEMU, and a kernel that has it
    #[arg(long)]
    vhost: bool,
    /// Only with this buffer: plug or ring [default: whatever the kernel has]
    #[arg(long, value_parser = ["plug", "ring"])]
    buffer: Option<String>,
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
        let load = Load {
            qemu: self.qemu,
            pps: self.pps,
        };
        self.specs().into_iter().map(move |spec| play(&spec, load))
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
                            vhost: self.vhost,
                        });
                    }
                }
            }
        }
        let is_in = |list: &[String], one: &str| list.is_empty() || list.iter().any(|l| l == one);
        specs.retain(|spec| is_in(&self.tunnel, spec.tunnel) && is_in(&self.family, spec.family));
        specs
    }

    fn has(&self, place: Place) -> bool {
        self.kernel.is_empty() || self.kernel.contains(&place)
    }
}

fn matrix(screen: &Screen, options: &MatrixArguments) -> Result<bool> {
    let mut cells = Vec::new();
    if options.has(Place::Own) {
        screen.step("kernel", "this machine's own")?;
        for cell in options.cells_here() {
            tell(screen, &cell)?;
            cells.push(cell);
        }
    }
    for kernel in Kernel::ALL {
        if options.has(Place::Vm(kernel)) {
            cells.extend(kernel::cells_on(screen, kernel, options)?);
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
    if reset > 0 {
        screen.print(&format!(
            "  * but for {reset}: before Linux 6.6 a tap outside of a pod can't be hooked without a reset of its queue"
        ))?;
    }
    Ok((options.skip || !cells.is_empty()) && good == cells.len())
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
}
