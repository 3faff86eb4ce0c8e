//! katamaran without one of the things that it does: taken away from outside, on the same stage, under the same traffic.

use std::time::Duration;

use anyhow::Result;

use super::Role;
use super::laggard::Laggard;
use super::migration::{Migration, MigrationOptions, settle};
use super::result::MigrationRun;
use super::stage::{Stage, StageOptions};
use crate::lab::TAP;

/// What is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ablation {
    /// Nothing.
    Nothing,
    /// `--tunnel-mode none`: no packet is turned to the destination.
    Redirect,
    /// The ring of the destination's tap is cut to the kernel's default once all is armed.
    LongRing,
    /// The limit of the destination's plug is cut to 32,768 bytes once all is armed; takes a kernel with sch_plug.
    LargePlug,
}

/// One run.
#[derive(Debug, Clone)]
pub struct AblationOptions {
    /// What is in place before.
    pub stage: StageOptions,
    /// Bytes per second that the path to B takes; as many as it can with `None`.
    pub path: Option<u64>,
    /// So many packets are kept waiting in V's tap until V has stopped.
    pub behind: Option<u32>,
    /// How long after V's RESUME on B the fabric's route is moved.
    pub converge_after: Duration,
}

/// Migrates V from A to B with katamaran, one thing taken away.
///
/// # Errors
///
/// When the stage can't be set, the thing not be taken away, or a katamaran still runs at the deadline.
pub fn run_ablation(ablation: Ablation, options: &AblationOptions) -> Result<MigrationRun> {
    let mut stage = Stage::set(options.stage.clone())?;
    if let Some(rate) = options.path {
        stage.lab.slow_path_to_b(7482, rate)?;
    }
    let mut flags = vec!["--downtime=3000".to_owned()];
    if ablation == Ablation::Redirect {
        flags.push("--tunnel-mode=none".to_owned());
    }
    let options_of_run = MigrationOptions {
        converge_after: options.converge_after,
        // Looking at everything takes many processes, each of them long to start on an emulated machine.
        leaks: None,
        source_args: flags,
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(&mut stage, &options_of_run)?;
    migration.look_until_logged(Role::Source, "phase=\"arm\"")?;
    let b = migration.stage.lab.network().b.clone();
    match ablation {
        Ablation::Nothing | Ablation::Redirect => {}
        Ablation::LongRing => b.ip(&format!("link set {TAP} txqueuelen 1000"))?,
        Ablation::LargePlug => {
            let words = [
                "qdisc", "change", "dev", TAP, "root", "plug", "limit", "32768",
            ];
            b.command("tc", &words)?;
        }
    }
    if let Some(packets) = options.behind {
        let laggard = Laggard::hold(migration.stage, packets)?;
        migration.look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })?;
        drop(laggard);
    }
    let (ended, timeline) = migration.end()?;
    settle(&mut stage, ended, &timeline)
}
