//! Cells of a table that are played under other kernels: this program again, in a VM of its own, a line of JSON for each.

use std::ffi::OsString;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::screen::Screen;
use crate::lab::{Kernel, KernelRun, cache_dir};

/// A guest that is emulated on an emulated machine is not waited for any shorter.
const MEMORY_MIB: u32 = 3072;
/// What a kernel says that came up, before its first cell.
const UP: &str = "up";

/// Where cells are played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the kernel that runs.
    Own,
    /// In a VM.
    Vm(Kernel),
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "own" => Ok(Self::Own),
            other => Ok(Self::Vm(other.parse()?)),
        }
    }
}

/// The kernel that runs, without what its packager adds.
pub(super) fn release() -> String {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let end = release.find(['+', '-']).unwrap_or(release.len());
    release[..end].to_owned()
}

/// Tells all cells to whoever has booted this kernel, each as it is played.
pub(super) fn tell<T: Serialize>(screen: &Screen, cells: impl Iterator<Item = T>) -> Result<()> {
    screen.print(UP)?;
    for cell in cells {
        screen.print(&serde_json::to_string(&cell)?)?;
    }
    Ok(())
}

/// What a kernel has played, and why it was not all.
#[derive(Debug)]
pub(super) struct Played<T> {
    pub(super) cells: Vec<T>,
    pub(super) cut_short: Option<String>,
}

/// Boots a kernel that plays all of its cells within `deadline`, its boot included; `each` is told of each as it comes. None
/// if the kernel does not come up and `skip` allows for that.
pub(super) fn play<T: DeserializeOwned>(
    kernel: Kernel,
    set_up: &str,
    deadline: Duration,
    arguments: impl IntoIterator<Item = OsString>,
    skip: bool,
    each: impl FnMut(&T) -> Result<()>,
) -> Result<Option<Played<T>>> {
    let this = std::env::current_exe().context("find this program")?;
    let mut command = vec![this.into_os_string()];
    command.extend(arguments);
    let run = KernelRun {
        set_up,
        directory: cache_dir(),
        memory_mib: MEMORY_MIB,
        deadline,
        ..KernelRun::new(kernel, command)
    };
    let mut said = Lines {
        line: Vec::new(),
        up: false,
        cells: Vec::new(),
        each,
    };
    let mut stderr = Vec::new();
    let ended = run.run(&mut said, &mut stderr);
    let stderr = String::from_utf8_lossy(&stderr);
    if !said.up {
        let reason = match ended {
            Ok(status) => format!("status {status}: {stderr}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(skip, "{kernel} did not come up: {reason}");
        Screen::default().print(&format!("SKIP {kernel}: it did not come up: {reason}"))?;
        return Ok(None);
    }
    let cut_short = (!matches!(ended, Ok(0))).then(|| format!("{ended:?}\n{stderr}"));
    Ok(Some(Played {
        cells: said.cells,
        cut_short,
    }))
}

/// Reads what a kernel says, line by line.
struct Lines<T, F> {
    line: Vec<u8>,
    up: bool,
    cells: Vec<T>,
    each: F,
}

impl<T: DeserializeOwned, F: FnMut(&T) -> Result<()>> Write for Lines<T, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if self.up {
                let cell: T = serde_json::from_slice(&line)?;
                (self.each)(&cell).map_err(io::Error::other)?;
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
