//! The cells of one of the lab's kernels: it is booted, and plays them all.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;

use super::cell::Cell;
use super::{MatrixArguments, PPS, tell, with};
use crate::lab::{Kernel, QemuVersion};
use crate::show::elsewhere::{self, Played};
use crate::show::screen::Screen;

/// How many wirings later the cross-section of one kernel begins than that of the one before: no two of them are the same.
pub(super) const TURN: usize = 2;
/// For the boot.
const BOOT: Duration = Duration::from_secs(120);
/// For each cell.
const PER_CELL: Duration = Duration::from_secs(90);
/// A guest that is emulated on an emulated machine is not waited for any shorter.
const PER_CELL_NESTED: Duration = Duration::from_secs(400);
const PPS_NESTED: u32 = 20;
/// Has modprobe say that there is no such module.
const WITHOUT_PLUG: &str = "mkdir -p /etc/modprobe.d; echo 'install sch_plug /bin/false' >/etc/modprobe.d/katamaran-lab.conf";

/// Boots a kernel that plays all of its cells, once with sch_plug and once without.
pub(super) fn cells_on(
    screen: &Screen,
    kernel: Kernel,
    options: &MatrixArguments,
) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for (buffer, set_up) in [("plug", ""), ("ring", WITHOUT_PLUG)] {
        // A cross-section is one boot.
        let wanted = match &options.buffer {
            Some(only) => only == buffer,
            None => !options.quick || buffer == "plug",
        };
        if wanted {
            let held = format!("{kernel}, packets held in the {buffer}{}", with(options));
            screen.step("kernel", &held)?;
            cells.extend(booted(screen, kernel, set_up, options)?);
        }
    }
    Ok(cells)
}

fn booted(
    screen: &Screen,
    kernel: Kernel,
    set_up: &str,
    options: &MatrixArguments,
) -> Result<Vec<Cell>> {
    let mut arguments: Vec<OsString> = vec!["matrix".into(), "--cells".into()];
    let (per_cell, pps) = match options.qemu {
        QemuVersion::StandIn => (PER_CELL, PPS),
        _ => (PER_CELL_NESTED, PPS_NESTED),
    };
    let pps = options.pps.unwrap_or(pps);
    arguments.push(format!("--pps={pps}").into());
    arguments.push(format!("--qemu={}", options.qemu).into());
    let place = Kernel::ALL.iter().position(|one| *one == kernel);
    let turn = place.map_or(0, |at| (at + 1) * TURN);
    arguments.push(format!("--turn={turn}").into());
    let vhost = if options.is_vhost() { "on" } else { "off" };
    arguments.push(format!("--vhost={vhost}").into());
    let quick = options.quick.then(|| "--quick".to_owned());
    let at_most = options.at_most.map(|count| format!("--at-most={count}"));
    let tunnels = options.tunnel.iter().map(|one| format!("--tunnel={one}"));
    let families = options.family.iter().map(|one| format!("--family={one}"));
    let wirings = options.wiring.iter().map(|one| format!("--wiring={one}"));
    let filters = tunnels.chain(families).chain(wirings);
    let filters = filters.chain(quick).chain(at_most);
    arguments.extend(filters.map(Into::into));
    let set_up = match options.is_vhost() {
        true => &format!("modprobe vhost_net; {set_up}"),
        false => set_up,
    };
    let count = u32::try_from(options.specs().len()).unwrap_or(u32::MAX);
    let deadline = BOOT + per_cell * count;
    let each = |cell: &Cell| tell(screen, cell);
    let played = elsewhere::play(kernel, set_up, deadline, arguments, options.skip, each)?;
    let Some(Played {
        mut cells,
        cut_short,
    }) = played
    else {
        return Ok(Vec::new());
    };
    // What was played counts, and what was not is bad.
    cells.extend(cut_short.map(|said| Cell {
        kernel: kernel.to_string(),
        verdict: "not played to the end".to_owned(),
        said,
        ..Cell::default()
    }));
    Ok(cells)
}
