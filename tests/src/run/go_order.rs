//! The order that katamaran does not follow: mirror over NBD, migrate while the mirror runs on, and cancel
//! the mirror by force once QEMU says that the migration is complete.
//!
//! It works as long as nothing is pending when V stops. What is pending then, QEMU has to write while
//! it gives its disks away; and a mirror that failed meanwhile is not looked at again. Both are played
//! here, because a test that can't see acknowledged writes being lost would prove nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::fault::{all_ready, mirrors};
use super::result::MigrationRun;
use super::stage::{Stage, StageOptions};
use super::timeline::Timeline;
use crate::lab::{Node, Start};

const NBD_PORT: u16 = 10_809;
const MIGRATION_PORT: u16 = 7400;
/// One look at both QEMUs.
const WATCH: Duration = Duration::from_millis(4);
/// Records that V writes to each disk after the mirror has died.
const WRITTEN_IN_VAIN: u64 = 300;

/// What happens between *ready* and the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing.
    None,
    /// The path gets slow, so that the mirrors fall behind by so many bytes.
    Backlog {
        /// Bytes per second that it carries from then on.
        path: u64,
        /// Bytes that the destination lacks when the migration begins.
        pending: u64,
    },
    /// B's export goes away, and with it the mirrors.
    ExportDies,
}

/// A migration in that order.
#[derive(Debug, Clone)]
pub struct GoOrderOptions {
    /// What is in place before; B's QEMU is started so that it runs V by itself.
    pub stage: StageOptions,
    /// What goes wrong.
    pub mishap: Mishap,
    /// The whole migration.
    pub deadline: Duration,
}

/// What it came to.
#[derive(Debug)]
pub struct GoOrderRun {
    /// As for every migration.
    pub run: MigrationRun,
    /// What QEMU on A said of the migration, `completed` as a rule; none if it was gone by then.
    pub status: Option<String>,
    /// What QEMU on A said in the end if it crashed.
    pub crash: Option<String>,
}

/// Migrates V and its disks from A to B.
///
/// QEMU on A may crash of a write that is pending before B has all of V, which is nowhere then: the run
/// has no [`MigrationRun::resume_ns`].
///
/// # Errors
///
/// When the stage can't be set, or V neither runs on B in time nor is gone.
pub fn run_go_order(options: &GoOrderOptions) -> Result<GoOrderRun> {
    let mut stage = Stage::set(StageOptions {
        incoming: Start::IncomingRun,
        ..options.stage.clone()
    })?;
    let started = Instant::now();
    let deadline = started + options.deadline;
    mirror_directly(&mut stage)?;
    let drives = stage.drives.len();
    wait(&mut stage, deadline, "ready", |stage| {
        all_ready(&mut stage.qmp_a, drives)
    })?;
    mishap(&mut stage, options.mishap, deadline)?;
    let listen = format!("tcp:{}:{MIGRATION_PORT}", Node::B.ipv4());
    let uri = json!({ "uri": listen });
    stage.qmp_b.command("migrate-incoming", uri.clone())?;
    stage.qmp_a.command("migrate", uri)?;
    let mut timeline = Timeline::default();
    while timeline.resume_ns.is_none() || timeline.converged_ns.is_none() {
        stage.watch(&mut timeline, WATCH, Duration::ZERO)?;
        // B's QEMU ends with a stream that ends too early.
        let gone = stage.guest_a.process().try_wait()?.is_some()
            && stage.guest_b.process().try_wait()?.is_some();
        if gone {
            break;
        }
        if Instant::now() >= deadline {
            bail!("V does not run on B after {:?}", options.deadline);
        }
    }
    let state = stage.qmp_a.command("query-migrate", Value::Null);
    let status = state
        .ok()
        .and_then(|state| Some(state["status"].as_str()?.to_owned()));
    end_mirrors(&mut stage);
    stage.watch(&mut timeline, WATCH, Duration::ZERO)?;
    let ended = stage.guest_a.process().try_wait()?;
    let crash = ended.map(|status| format!("{status}: {}", stage.guest_a.output()));
    let total_ms = started.elapsed().as_secs_f64() * 1e3;
    let (client, silence) = stage.finish_traffic()?;
    Ok(GoOrderRun {
        run: MigrationRun {
            kind: "go-order".to_owned(),
            client,
            silence,
            downtime_ms: timeline.downtime_ms(),
            stop_ns: timeline.stop_ns,
            resume_ns: timeline.resume_ns,
            converged_ns: timeline.converged_ns,
            total_ms,
            ..MigrationRun::default()
        },
        status,
        crash,
    })
}

/// Starts to mirror A's disks to B's over TCP, with nobody between the two QEMUs.
///
/// # Errors
///
/// When one of them refuses.
pub fn mirror_directly(stage: &mut Stage) -> Result<()> {
    export(stage)?;
    mirror(stage)
}

/// B serves its disks to the network.
fn export(stage: &mut Stage) -> Result<()> {
    let address = json!({ "type": "inet", "data": {
        "host": Node::B.ipv4().to_string(), "port": NBD_PORT.to_string() } });
    let server = json!({ "addr": address });
    stage.qmp_b.command("nbd-server-start", server)?;
    for drive in 0..stage.drives.len() {
        let name = format!("drive-virtio-disk{drive}");
        let export = json!({ "type": "nbd", "id": name, "node-name": node_of(stage, drive)?,
            "name": name, "writable": true });
        stage.qmp_b.command("block-export-add", export)?;
    }
    Ok(())
}

/// The name of the node on top of B's drive.
fn node_of(stage: &mut Stage, drive: usize) -> Result<String> {
    let device = format!("drive-virtio-disk{drive}");
    let drives = stage.qmp_b.command("query-block", Value::Null)?;
    let found = drives.as_array().into_iter().flatten();
    let mut nodes = found
        .filter(|entry| entry["device"] == device.as_str())
        .filter_map(|entry| entry["inserted"]["node-name"].as_str());
    match nodes.next() {
        Some(node) => Ok(node.to_owned()),
        None => bail!("B has no {device}: {drives}"),
    }
}

/// A mirrors its disks over TCP.
fn mirror(stage: &mut Stage) -> Result<()> {
    for drive in 0..stage.drives.len() {
        let name = format!("drive-virtio-disk{drive}");
        let target = format!("nbd:{}:{NBD_PORT}:exportname={name}", Node::B.ipv4());
        let job = json!({ "job-id": format!("mirror-{name}"), "device": name, "target": target,
            "format": "raw", "sync": "full", "mode": "existing" });
        stage.qmp_a.command("drive-mirror", job)?;
    }
    Ok(())
}

/// Cancels by force what is left of the mirrors, and ends the export.
fn end_mirrors(stage: &mut Stage) {
    for drive in 0..stage.drives.len() {
        let job = json!({ "device": format!("mirror-drive-virtio-disk{drive}"), "force": true });
        // Gone with its QEMU, or failed before: there is nobody to tell in this order either.
        stage.qmp_a.command("block-job-cancel", job).ok();
    }
    stage.qmp_b.command("nbd-server-stop", Value::Null).ok();
}

fn mishap(stage: &mut Stage, mishap: Mishap, deadline: Instant) -> Result<()> {
    match mishap {
        Mishap::None => Ok(()),
        Mishap::Backlog { path, pending } => {
            stage.lab.slow_path_to_b(NBD_PORT, path)?;
            wait(stage, deadline, "a backlog", |stage| {
                let mirrors = mirrors(&mut stage.qmp_a)?;
                let behind: u64 = mirrors.iter().map(super::fault::Mirror::pending).sum();
                Ok(behind >= pending)
            })
        }
        Mishap::ExportDies => {
            stage.qmp_b.command("nbd-server-stop", Value::Null)?;
            match &stage.client {
                Some(client) => client.wait_for_writes(WRITTEN_IN_VAIN),
                None => Ok(()),
            }
        }
    }
}

/// Waits until something has come.
fn wait(
    stage: &mut Stage,
    deadline: Instant,
    what: &str,
    mut come: impl FnMut(&mut Stage) -> Result<bool>,
) -> Result<()> {
    while !come(stage)? {
        if Instant::now() >= deadline {
            let jobs = stage.qmp_a.command("query-block-jobs", Value::Null)?;
            bail!("no {what} in time: {jobs}");
        }
        std::thread::sleep(WATCH);
    }
    Ok(())
}
