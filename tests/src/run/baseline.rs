//! What katamaran is compared with: the same migration by plainer means, on the same stage.
//!
//! | baseline | what happens to the network |
//! |---|---|
//! | [`Baseline::Plain`] | nothing, until the CNI moves the route after RESUME |
//! | [`Baseline::AfterStop`] | when STOP is seen, `ip` makes a tunnel to B and routes V into it |
//! | [`Baseline::Plugged`] | the same, and a plug of 32,768 bytes on B's tap, which is released at RESUME; takes a kernel with sch_plug |
//! | [`Baseline::Undrained`] | the tunnel first; when it stands, V is stopped at once |
//!
//! The second and the third are the order of tools that redirect once the VM has stopped. The tunnel is vxlan, and
//! B's end of it is there beforehand, and B knows V's Ethernet address, which favours that order; B delivers by its own routes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::laggard::Laggard;
use super::result::MigrationRun;
use super::stage::{Stage, StageOptions};
use super::timeline::Timeline;
use crate::lab::{GUEST_MAC, GUEST_V4, GUEST_V6, Node, Start, TAP};

/// katamaran's own, so that a path that is slow for it is slow for all.
const MIGRATION_PORT: u16 = 7482;
/// The limit of the seeds' plug.
const SMALL_PLUG_BYTES: &str = "32768";
/// QEMU does not come to its end at this, in bytes per second.
const HELD_BANDWIDTH: u64 = 1 << 20;
/// More than any path takes.
const UNLIMITED: u64 = 1 << 40;
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
    /// The same, with a small plug at the destination: the seeds' own way.
    Plugged,
    /// By a tunnel that is made before V is stopped. What its QEMU has not read then nobody waits for.
    Undrained,
}

impl Baseline {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::AfterStop => "after-stop",
            Self::Plugged => "plugged",
            Self::Undrained => "undrained",
        }
    }
}

impl std::str::FromStr for Baseline {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "plain" => Ok(Self::Plain),
            "after-stop" => Ok(Self::AfterStop),
            "plugged" => Ok(Self::Plugged),
            "undrained" => Ok(Self::Undrained),
            _ => bail!("unknown baseline {text}: plain, after-stop, plugged or undrained"),
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
    /// So many packets are kept waiting in V's tap until V has stopped.
    pub behind: Option<u32>,
    /// Bytes per second that the path to B takes; as many as it can with `None`.
    pub path: Option<u64>,
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
            behind: None,
            path: None,
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
    if let Some(rate) = options.path {
        stage.lab.slow_path_to_b(MIGRATION_PORT, rate)?;
    }
    if kind != Baseline::Plain {
        prepare_tunnel_end(&stage)?;
    }
    if kind == Baseline::Plugged {
        plug(&stage, "add", &["limit", SMALL_PLUG_BYTES])?;
    }
    let mut laggard = options
        .behind
        .map(|packets| Laggard::hold(&mut stage, packets))
        .transpose()?;
    let started = Instant::now();
    let deadline = started + options.deadline;
    let mut timeline = Timeline::default();
    start_migration(&mut stage, kind, options)?;
    match kind {
        Baseline::Plain => {}
        // Nothing else is done meanwhile: the redirect starts as early as this order allows.
        Baseline::AfterStop | Baseline::Plugged => {
            wait_for_stop(&mut stage, &mut timeline, deadline)?;
            redirect_to_tunnel(&stage)?;
        }
        Baseline::Undrained => {
            stage.qmp_a.wait_event(deadline, |event| {
                event.name == "MIGRATION" && event.data["status"] == "active"
            })?;
            redirect_to_tunnel(&stage)?;
            stage.qmp_a.command("stop", Value::Null)?;
            wait_for_stop(&mut stage, &mut timeline, deadline)?;
            set_pace(&mut stage, UNLIMITED, 60_000)?;
            // A VM that somebody has stopped stays so where it arrives.
            wait_until_arrived(&mut stage, deadline)?;
            stage.qmp_b.command("cont", Value::Null)?;
        }
    }
    let mut released = kind != Baseline::Plugged;
    while timeline.resume_ns.is_none() || timeline.converged_ns.is_none() {
        stage.watch(&mut timeline, WATCH, options.converge_after)?;
        if timeline.stop_ns.is_some() {
            laggard = None;
        }
        if timeline.resume_ns.is_some() && !released {
            plug(&stage, "change", &["release_indefinite"])?;
            released = true;
        }
        if Instant::now() > deadline {
            let state = stage.qmp_a.command("query-migrate", Value::Null)?;
            bail!("still migrating after {:?}: {state}", options.deadline);
        }
    }
    // STOP may have come while B was looked at.
    stage.watch(&mut timeline, WATCH, options.converge_after)?;
    drop(laggard);
    let state = stage.qmp_a.command("query-migrate", Value::Null)?;
    let total_ms = started.elapsed().as_secs_f64() * 1e3;
    let (client, silence) = stage.finish_traffic()?;
    let guest = stage.lab.guest_command("status").ok();
    Ok(MigrationRun {
        received_by_guest: stage.received_by_guest(guest.as_deref()),
        guest,
        kind: kind.name().to_owned(),
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

fn start_migration(stage: &mut Stage, kind: Baseline, options: &BaselineOptions) -> Result<()> {
    let listen = format!("tcp:{}:{MIGRATION_PORT}", Node::B.ipv4());
    stage
        .qmp_b
        .command("migrate-incoming", json!({ "uri": listen }))?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    stage.qmp_a.command("migrate-set-capabilities", events)?;
    let bandwidth = match kind {
        Baseline::Undrained => Some(HELD_BANDWIDTH),
        _ => options.max_bandwidth,
    };
    let mut parameters = json!({ "downtime-limit": options.downtime_limit_ms });
    if let Some(bandwidth) = bandwidth {
        parameters["max-bandwidth"] = bandwidth.into();
    }
    stage.qmp_a.command("migrate-set-parameters", parameters)?;
    stage.qmp_a.command("migrate", json!({ "uri": listen }))?;
    Ok(())
}

fn set_pace(stage: &mut Stage, bandwidth: u64, downtime_limit_ms: u64) -> Result<()> {
    let pace = json!({ "max-bandwidth": bandwidth, "downtime-limit": downtime_limit_ms });
    stage
        .qmp_a
        .command("migrate-set-parameters", pace)
        .map(drop)
}

fn wait_for_stop(stage: &mut Stage, timeline: &mut Timeline, deadline: Instant) -> Result<()> {
    let stop = stage
        .qmp_a
        .wait_event(deadline, |event| event.name == "STOP")?;
    stage.note_of_a(timeline, stop);
    Ok(())
}

fn wait_until_arrived(stage: &mut Stage, deadline: Instant) -> Result<()> {
    while stage.qmp_b.command("query-status", Value::Null)?["status"] == "inmigrate" {
        ensure!(Instant::now() < deadline, "V does not arrive");
        std::thread::sleep(WATCH);
    }
    Ok(())
}

/// Adds or changes the plug on B's tap.
fn plug(stage: &Stage, verb: &str, what: &[&str]) -> Result<()> {
    let words = [&["qdisc", verb, "dev", TAP, "root", "plug"], what].concat();
    stage.lab.network().b.command("tc", &words).map(drop)
}

/// B knows V's Ethernet address: it need not ask a VM that does not run.
fn prepare_tunnel_end(stage: &Stage) -> Result<()> {
    stage.lab.network().b.ip(&format!(
        "neigh replace {GUEST_V4} lladdr {GUEST_MAC} dev {TAP} nud permanent
         neigh replace {GUEST_V6} lladdr {GUEST_MAC} dev {TAP} nud permanent
         link add {TUNNEL} address {TUNNEL_MAC} mtu 1450 type vxlan id 11 remote {} local {} dstport 4789 dev eth0
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
