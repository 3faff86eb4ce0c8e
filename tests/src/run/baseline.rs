//! What katamaran is compared with: the same migration by plainer means, on the same stage.
//!
//! | baseline | what happens to the network |
//! |---|---|
//! | [`Baseline::Plain`] | nothing, until the CNI moves the route after RESUME |
//! | [`Baseline::AfterStop`] | when STOP is seen, `ip` makes a tunnel to B and routes V into it |
//!
//! The second is the order of tools that redirect once the VM has stopped. The tunnel is vxlan, and
//! B's end of it is there beforehand, which favours that order; B delivers by its own routes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::result::MigrationRun;
use super::stage::{Stage, StageOptions};
use super::timeline::Timeline;
use crate::lab::{GUEST_V4, GUEST_V6, Node, Start};

const MIGRATION_PORT: u16 = 7400;
const TUNNEL: &str = "base0";
const TUNNEL_MAC: &str = "02:00:00:00:0b:0b";
/// One look at both QEMUs.
const WATCH: Duration = Duration::from_millis(4);

/// How the network is switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// Only by the CNI, after RESUME.
    Plain,
    /// By a tunnel that is made when STOP is seen, and by the CNI after RESUME.
    AfterStop,
}

impl std::str::FromStr for Baseline {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "plain" => Ok(Self::Plain),
            "after-stop" => Ok(Self::AfterStop),
            _ => bail!("unknown baseline {text}: plain or after-stop"),
        }
    }
}

/// One run of a baseline.
#[derive(Debug, Clone)]
pub struct BaselineOptions {
    /// What is in place before; B's QEMU is started so that it runs V by itself.
    pub stage: StageOptions,
    /// QEMU's downtime-limit, in ms.
    pub downtime_limit_ms: u64,
    /// QEMU's max-bandwidth in bytes per second; its default with `None`.
    pub max_bandwidth: Option<u64>,
    /// How long after V's RESUME on B the fabric's route is moved.
    pub converge_after: Duration,
    /// The whole migration.
    pub deadline: Duration,
}

impl Default for BaselineOptions {
    fn default() -> Self {
        Self {
            stage: StageOptions::default(),
            downtime_limit_ms: 20,
            max_bandwidth: None,
            converge_after: Duration::ZERO,
            deadline: Duration::from_secs(120),
        }
    }
}

/// Migrates V from A to B by plain QMP.
///
/// # Errors
///
/// When the stage can't be set, or QEMU does not complete the migration in time.
pub fn run_baseline(kind: Baseline, options: &BaselineOptions) -> Result<MigrationRun> {
    let stage_options = StageOptions {
        incoming: Start::IncomingRun,
        ..options.stage.clone()
    };
    let mut stage = Stage::set(stage_options)?;
    if kind == Baseline::AfterStop {
        prepare_tunnel_end(&stage)?;
    }
    let started = Instant::now();
    start_migration(&mut stage, options)?;
    let mut timeline = Timeline::default();
    let mut redirected = kind == Baseline::Plain;
    while timeline.resume_ns.is_none() || timeline.converged_ns.is_none() {
        if !redirected {
            // Nothing else is done meanwhile: the redirect starts as early as this order allows.
            let deadline = started + options.deadline;
            let stop = stage
                .qmp_a
                .wait_event(deadline, |event| event.name == "STOP")?;
            redirect_to_tunnel(&stage)?;
            timeline.note(Node::A, stop);
            redirected = true;
        }
        stage.watch(&mut timeline, WATCH, options.converge_after)?;
        if started.elapsed() > options.deadline {
            let state = stage.qmp_a.command("query-migrate", Value::Null)?;
            bail!("still migrating after {:?}: {state}", options.deadline);
        }
    }
    // STOP may have come while B was looked at.
    stage.watch(&mut timeline, WATCH, options.converge_after)?;
    let state = stage.qmp_a.command("query-migrate", Value::Null)?;
    let total_ms = started.elapsed().as_secs_f64() * 1e3;
    let (client, silence) = stage.finish_traffic()?;
    let guest = stage.lab.guest_command("status").ok();
    Ok(MigrationRun {
        guest,
        kind: match kind {
            Baseline::Plain => "plain",
            Baseline::AfterStop => "after-stop",
        }
        .to_owned(),
        client,
        silence,
        leaks: Vec::new(),
        downtime_ms: timeline.downtime_ms(),
        qemu_downtime_ms: state["downtime"].as_f64(),
        stop_ns: timeline.stop_ns,
        resume_ns: timeline.resume_ns,
        converged_ns: timeline.converged_ns,
        total_ms,
        source: None,
        dest: None,
    })
}

fn start_migration(stage: &mut Stage, options: &BaselineOptions) -> Result<()> {
    let listen = format!("tcp:{}:{MIGRATION_PORT}", Node::B.ipv4());
    stage
        .qmp_b
        .command("migrate-incoming", json!({ "uri": listen }))?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    stage.qmp_a.command("migrate-set-capabilities", events)?;
    let mut parameters = json!({ "downtime-limit": options.downtime_limit_ms });
    if let Some(bandwidth) = options.max_bandwidth {
        parameters["max-bandwidth"] = bandwidth.into();
    }
    stage.qmp_a.command("migrate-set-parameters", parameters)?;
    stage.qmp_a.command("migrate", json!({ "uri": listen }))?;
    Ok(())
}

fn prepare_tunnel_end(stage: &Stage) -> Result<()> {
    stage.lab.network().b.ip(&format!(
        "link add {TUNNEL} address {TUNNEL_MAC} mtu 1450 type vxlan id 11 remote {} local {} dstport 4789 dev eth0
         link set {TUNNEL} up",
        Node::A.ipv4(),
        Node::B.ipv4()
    ))
}

fn redirect_to_tunnel(stage: &Stage) -> Result<()> {
    stage.lab.network().a.ip(&format!(
        "link add {TUNNEL} mtu 1450 type vxlan id 11 remote {} local {} dstport 4789 dev eth0
         link set {TUNNEL} up
         neigh replace {GUEST_V4} lladdr {TUNNEL_MAC} dev {TUNNEL}
         route replace {GUEST_V4}/32 dev {TUNNEL}
         neigh replace {GUEST_V6} lladdr {TUNNEL_MAC} dev {TUNNEL}
         -6 route replace {GUEST_V6}/128 dev {TUNNEL} metric 1",
        Node::B.ipv4(),
        Node::A.ipv4()
    ))
}
