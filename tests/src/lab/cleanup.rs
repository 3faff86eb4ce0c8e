//! Removes what a lab made, on every way out: drop, panic, SIGINT and SIGTERM.
//!
//! A lab that was killed outright leaves its namespaces and its directory; [`sweep`] finds them by
//! the pid in the directory and removes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::netns::run_command;
use super::process::end_polite_processes;

/// How long processes that are told to end may clean up.
const POLITE_DEADLINE: Duration = Duration::from_secs(15);
/// Where labs keep their sockets and logs.
const RUN_DIR: &str = "/run/katamaran-lab";

/// What has to be removed at the end of one lab.
#[derive(Debug)]
pub(crate) struct Belongings {
    dir: PathBuf,
    things: Mutex<Things>,
}

#[derive(Debug, Default)]
struct Things {
    netns: Vec<String>,
    mounts: Vec<PathBuf>,
    removed: bool,
}

static LABS: Mutex<Vec<Arc<Belongings>>> = Mutex::new(Vec::new());

impl Belongings {
    /// Makes the lab's directory and puts it under the care of this module.
    pub(crate) fn register(id: &str) -> Result<Arc<Self>> {
        let dir = Path::new(RUN_DIR).join(id);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        fs::write(dir.join("pid"), std::process::id().to_string())
            .with_context(|| format!("write {}", dir.join("pid").display()))?;
        let belongings = Arc::new(Self {
            dir,
            things: Mutex::default(),
        });
        LABS.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&belongings));
        Ok(belongings)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes a namespace, before it is made.
    pub(crate) fn own_netns(&self, name: &str) {
        self.things
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .netns
            .push(name.to_owned());
    }

    /// Notes a mount point below the lab's directory, before something is mounted there.
    pub(crate) fn own_mount(&self, dir: &Path) {
        self.things
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .mounts
            .push(dir.to_owned());
    }

    /// Removes everything, once. The lab's processes must have been killed before.
    pub(crate) fn remove(&self) {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut things.removed, true) {
            return;
        }
        for name in &things.netns {
            remove_netns(name);
        }
        for dir in &things.mounts {
            unmount(dir);
        }
        drop(fs::remove_dir_all(&self.dir));
        // Stays while other labs are there.
        drop(fs::remove_dir(RUN_DIR));
    }

    pub(crate) fn forget(self: &Arc<Self>) {
        let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
        labs.retain(|lab| !Arc::ptr_eq(lab, self));
    }
}

fn remove_netns(name: &str) {
    if Path::new("/run/netns").join(name).exists() {
        drop(run_command(Command::new("ip").args(["netns", "del", name])));
    }
}

fn unmount(dir: &Path) {
    // Also while somebody still has a file in it open. Fails where nothing is mounted.
    umount2(dir, MntFlags::MNT_DETACH).ok();
}

/// Makes SIGINT and SIGTERM remove every lab of this program and end it with status 130.
///
/// To be called once, first thing in `main`: threads that exist already would still die of the
/// signal, and the whole program with them. Processes of the labs die with the program.
///
/// # Errors
///
/// When the signal mask can't be set.
pub fn remove_labs_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).context("block signals")?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            end_polite_processes(Instant::now() + POLITE_DEADLINE);
            let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for lab in labs {
                lab.remove();
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

/// Removes what labs left that were killed outright; returns their ids.
///
/// # Errors
///
/// When the labs' directory can't be read.
pub fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    if !Path::new(RUN_DIR).exists() {
        return Ok(swept);
    }
    for entry in fs::read_dir(RUN_DIR).with_context(|| format!("read {RUN_DIR}"))? {
        let entry = entry.with_context(|| format!("read {RUN_DIR}"))?;
        let id = entry.file_name().to_string_lossy().into_owned();
        let pid = fs::read_to_string(entry.path().join("pid")).unwrap_or_default();
        if !pid.is_empty() && Path::new("/proc").join(pid.trim()).exists() {
            continue;
        }
        for place in super::topology::PLACES {
            remove_netns(&super::topology::netns_name(&id, place));
        }
        for below in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            unmount(&below.path());
        }
        drop(fs::remove_dir_all(entry.path()));
        swept.push(id);
    }
    drop(fs::remove_dir(RUN_DIR));
    Ok(swept)
}
