//! The cells of one of the lab's kernels: it is booted, and plays them all.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cell::Cell;
use super::{MatrixArguments, tell};
use crate::lab::{Kernel, KernelRun, QemuVersion, cache_dir};
use crate::show::screen::Screen;

/// For the boot.
const BOOT: Duration = Duration::from_secs(120);
/// For each cell.
const PER_CELL: Duration = Duration::from_secs(90);
/// A guest that is emulated on an emulated machine is not waited for any shorter.
const PER_CELL_NESTED: Duration = Duration::from_secs(400);
const MEMORY_MIB: u32 = 3072;
/// Has modprobe say that there is no such module.
const WITHOUT_PLUG: &str = "mkdir -p /etc/modprobe.d; echo 'install sch_plug /bin/false' >/etc/modprobe.d/katamaran-lab.conf";

/// What a kernel says that came up, before its first cell.
pub(super) const UP: &str = "up";

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
            screen.step("kernel", &format!("{kernel}, packets held in the {buffer}"))?;
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
    let this = std::env::current_exe().context("find this program")?;
    let mut command = vec![this.into_os_string(), "matrix".into(), "--cells".into()];
    command.push(format!("--pps={}", options.pps).into());
    command.push(format!("--qemu={}", options.qemu).into());
    for (flag, on) in [("--quick", options.quick), ("--vhost", options.vhost)] {
        if on {
            command.push(flag.into());
        }
    }
    let tunnels = options.tunnel.iter().map(|one| format!("--tunnel={one}"));
    let families = options.family.iter().map(|one| format!("--family={one}"));
    let wirings = options.wiring.iter().map(|one| format!("--wiring={one}"));
    let filters = tunnels.chain(families).chain(wirings);
    command.extend(filters.map(Into::into));
    let per_cell = match options.qemu {
        QemuVersion::StandIn => PER_CELL,
        _ => PER_CELL_NESTED,
    };
    let set_up = match options.vhost {
        true => &format!("modprobe vhost_net; {set_up}"),
        false => set_up,
    };
    let count = u32::try_from(options.specs().len()).unwrap_or(u32::MAX);
    let run = KernelRun {
        set_up,
        directory: cache_dir(),
        memory_mib: MEMORY_MIB,
        deadline: BOOT + per_cell * count,
        ..KernelRun::new(kernel, command)
    };
    let mut said = Cells {
        screen,
        line: Vec::new(),
        up: false,
        cells: Vec::new(),
    };
    let mut stderr = Vec::new();
    let ended = run.run(&mut said, &mut stderr);
    let stderr = String::from_utf8_lossy(&stderr);
    if !said.up {
        let reason = match ended {
            Ok(status) => format!("status {status}: {stderr}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(options.skip, "{kernel} did not come up: {reason}");
        screen.print(&format!("SKIP {kernel}: it did not come up: {reason}"))?;
        return Ok(Vec::new());
    }
    let mut cells = said.cells;
    // What was played counts, and what was not is bad.
    if !matches!(ended, Ok(0)) {
        cells.push(Cell {
            kernel: kernel.to_string(),
            verdict: "not played to the end".to_owned(),
            said: format!("{ended:?}\n{stderr}"),
            ..Cell::default()
        });
    }
    Ok(cells)
}

/// Reads cells as they come, and tells of each.
struct Cells<'a> {
    screen: &'a Screen,
    line: Vec<u8>,
    up: bool,
    cells: Vec<Cell>,
}

impl Write for Cells<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if self.up {
                let cell: Cell = serde_json::from_slice(&line)?;
                tell(self.screen, &cell).map_err(io::Error::other)?;
                self.cells.push(cell);
            } else {
                self.up = line == UP.as_bytes();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
