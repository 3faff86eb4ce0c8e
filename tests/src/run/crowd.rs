//! Many VMs of one node, migrated to the other at the same time, and some of them called back on the way.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::katamaran::{KatamaranProcess, Role, Stderr};
use super::migration::{LEAK_DEADLINE, is_kept};
use super::result::SideResult;
use super::timeline::Timeline;
use crate::lab::{Guest, Identity, Lab, LabConfig, Node, QemuVersion, Qmp, Start};
use crate::leak::{Scope, Snapshot, session_files};
use crate::traffic::{UdpLoad, UdpResult, UdpTraffic, now_ns};

/// Where the first destination listens; each of the others at the next port.
const FIRST_PORT: u16 = 7600;
/// How long after a VM's RESUME the fabric's routes to it are moved.
const CONVERGES_AFTER_NS: u64 = 500_000_000;
/// For all of them together, on two busy processors.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long a machine that starts so many VMs may take until each answers.
const WARM_UP: Duration = Duration::from_secs(60);
/// What each stream must have had back before it begins, and again when it is over.
const PACKETS: u64 = 20;
/// What a source has logged when it is told to end: each that is called back takes the next of these.
const CALLED_BACK_AT: [&str; 3] = [
    "both nodes are ready",
    "done phase=\"arm\"",
    "done phase=\"copy RAM\"",
];

/// What to play.
#[derive(Debug, Clone, Copy)]
pub struct CrowdOptions {
    /// How many VMs.
    pub vms: u8,
    /// How many of them are called back.
    pub called_back: u8,
    /// What they run in.
    pub qemu: QemuVersion,
    /// UDP packets a second to each, over each of IPv4 and IPv6.
    pub pps: u32,
}

/// What became of one VM.
#[derive(Debug, Clone)]
pub struct Member {
    /// The number of the VM, from 1.
    pub number: u8,
    /// Whether its source was told to end.
    pub called_back: bool,
    /// The katamaran on A.
    pub source: SideResult,
    /// The katamaran on B.
    pub dest: SideResult,
    /// Whether the VM runs on A, and on B.
    pub runs: [bool; 2],
    /// By the client's count, over IPv4 and IPv6.
    pub udp: [UdpResult; 2],
    /// From V's STOP to its RESUME on B.
    pub downtime_ms: Option<f64>,
}

impl Member {
    /// Whatever is not as it has to be.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let exits = (self.source.status, self.dest.status);
        let said = |key: &str| {
            let report = self.source.report.as_ref();
            report.and_then(|r| r[key].as_str()).unwrap_or("nothing")
        };
        let moved = exits == (Some(0), Some(0)) && self.runs == [false, true];
        let stayed = exits == (Some(130), Some(1)) && self.runs == [true, false];
        let in_time = self.called_back && stayed && said("outcome") == "cancelled";
        // A signal that comes after COMMIT is too late.
        let proven = moved && said("verdict") == "proven";
        if !(in_time || proven) {
            problems.push(format!(
                "exits {exits:?}, runs on A and B: {:?}, outcome {}, verdict {}",
                self.runs,
                said("outcome"),
                said("verdict")
            ));
        }
        for (family, udp) in ["IPv4", "IPv6"].iter().zip(&self.udp) {
            if !udp.is_perfect() {
                problems.push(format!(
                    "{family}: {} of {} lost, {} duplicated, {} reordered",
                    udp.lost, udp.sent, udp.duplicated, udp.reordered
                ));
            }
        }
        problems
    }
}

/// What became of all of them.
#[derive(Debug, Clone)]
pub struct CrowdRun {
    /// Each VM.
    pub members: Vec<Member>,
    /// What is on the nodes that was not there before, or the other way round.
    pub leaks: Vec<String>,
    /// From the start of the first source until the last katamaran had ended.
    pub took: Duration,
    /// The most migrations that were under way at one time.
    pub at_once: usize,
}

/// A VM at work. Fields drop in this order: traffic, programs, guests.
struct Vm {
    number: u8,
    identity: Identity,
    streams: Option<[UdpTraffic; 2]>,
    source: Option<KatamaranProcess>,
    dest: Option<KatamaranProcess>,
    call_back_at: Option<&'static str>,
    called_back: bool,
    guests: [Guest; 2],
    monitors: [Qmp; 2],
    timeline: Timeline,
}

/// Starts so many VMs on A, migrates all of them at the same time, and moves the routes to each when it has arrived.
///
/// # Errors
///
/// When the lab fails, or a katamaran still runs at the deadline.
pub fn run_crowd(options: CrowdOptions) -> Result<CrowdRun> {
    let lab = Lab::new(LabConfig {
        qemu: options.qemu,
        memory_mib: match options.qemu {
            QemuVersion::StandIn => 16,
            QemuVersion::V7_2 | QemuVersion::V10_0 => 96,
        },
        ..LabConfig::default()
    })?;
    let mut vms = (1..=options.vms)
        .map(|number| Vm::start(&lab, number, options))
        .collect::<Result<Vec<_>>>()?;
    for vm in &vms {
        vm.answers()?;
    }
    let before = Snapshot::take(Scope::NamespacesOnly, lab.network().node_side())?;
    for vm in &mut vms {
        vm.expect(&lab)?;
    }
    let began = Instant::now();
    for vm in &mut vms {
        vm.send(&lab)?;
    }
    let mut at_once = 0;
    loop {
        let mut at_work = 0;
        for vm in &mut vms {
            at_work += usize::from(vm.look(&lab)?);
        }
        at_once = at_once.max(at_work);
        if at_work == 0 {
            break;
        }
        if began.elapsed() >= DEADLINE {
            bail!("{at_work} of {} still run after {DEADLINE:?}", vms.len());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = began.elapsed();
    for vm in &vms {
        vm.answers()?;
    }
    let members = vms.iter_mut().map(Vm::result).collect::<Result<Vec<_>>>()?;
    let leaks = leaks(&lab, &before, &members, &vms)?;
    Ok(CrowdRun {
        members,
        leaks,
        took,
        at_once,
    })
}

impl Vm {
    /// Boots it on A, has an empty QEMU wait for it on B, and starts its traffic.
    fn start(lab: &Lab, number: u8, options: CrowdOptions) -> Result<Self> {
        let identity = Identity::of_many(number);
        lab.wire(&identity)?;
        let guests = [
            lab.start_beside(&identity, Node::A, Start::Boot)?,
            lab.start_beside(&identity, Node::B, Start::Incoming)?,
        ];
        lab.wait_for_answers(&identity, Instant::now() + WARM_UP)
            .with_context(|| guests[0].output())?;
        let client = &lab.network().client;
        let stream =
            |address: IpAddr| UdpTraffic::start(client, UdpLoad::new(address, options.pps));
        let called_back = number <= options.called_back;
        let moment = usize::from(number) % CALLED_BACK_AT.len();
        Ok(Self {
            number,
            streams: Some([stream(identity.v4.into())?, stream(identity.v6.into())?]),
            source: None,
            dest: None,
            call_back_at: called_back.then_some(CALLED_BACK_AT[moment]),
            called_back: false,
            monitors: [guests[0].qmp()?, guests[1].qmp()?],
            guests,
            identity,
            timeline: Timeline::default(),
        })
    }

    fn answers(&self) -> Result<()> {
        let deadline = Instant::now() + WARM_UP;
        let mut streams = self.streams.iter().flatten();
        streams.try_for_each(|udp| udp.wait_for_more(PACKETS, deadline))
    }

    /// Starts the destination.
    fn expect(&mut self, lab: &Lab) -> Result<()> {
        let mut dest = self.katamaran(lab, Role::Dest)?;
        dest.wait_until_listening(lab, self.port())?;
        self.dest = Some(dest);
        Ok(())
    }

    /// Starts the source.
    fn send(&mut self, lab: &Lab) -> Result<()> {
        self.source = Some(self.katamaran(lab, Role::Source)?);
        Ok(())
    }

    fn katamaran(&self, lab: &Lab, role: Role) -> Result<KatamaranProcess> {
        let guest = match role {
            Role::Source => &self.guests[0],
            Role::Dest => &self.guests[1],
        };
        let args = [
            "--shared-storage".to_owned(),
            format!("--port={}", self.port()),
        ];
        let who = format!("-{}", self.number);
        KatamaranProcess::start_for(
            lab,
            std::slice::from_ref(&self.identity),
            guest,
            role,
            &who,
            &args,
            Stderr::Kept,
        )
    }

    fn port(&self) -> u16 {
        FIRST_PORT + u16::from(self.number)
    }

    /// One look: does what is due. Whether one of its katamarans is still at work.
    fn look(&mut self, lab: &Lab) -> Result<bool> {
        let [a, b] = &mut self.monitors;
        for (node, qmp) in [(Node::A, a), (Node::B, b)] {
            // A QEMU that is gone has nothing more to report.
            for event in qmp.events_until(Instant::now()).unwrap_or_default() {
                self.timeline.note(node, event);
            }
        }
        let due = self.timeline.resume_ns.map(|at| at + CONVERGES_AFTER_NS);
        if self.timeline.converged_ns.is_none() && due.is_some_and(|due| now_ns() >= due) {
            lab.network().route_to(&self.identity, Node::B)?;
            self.timeline.converged_ns = Some(now_ns());
        }
        let (Some(source), Some(dest)) = (&mut self.source, &mut self.dest) else {
            bail!("VM {} has no katamarans", self.number);
        };
        let [source_runs, dest_runs] = [source.runs()?, dest.runs()?];
        let moment = self.call_back_at.filter(|_| source_runs);
        if moment.is_some_and(|text| source.stderr().contains(text)) {
            self.call_back_at = None;
            // It may just have ended.
            self.called_back = source.process().signal(Signal::SIGINT).is_ok();
        }
        Ok(source_runs || dest_runs)
    }

    fn result(&mut self) -> Result<Member> {
        let ended = |side: &mut Option<KatamaranProcess>| {
            side.as_mut().context("a katamaran was started")?.result()
        };
        let (source, dest) = (ended(&mut self.source)?, ended(&mut self.dest)?);
        // A QEMU that is gone runs nothing.
        let runs = self.monitors.each_mut().map(|qmp| {
            let status = qmp.command("query-status", Value::Null);
            status.is_ok_and(|status| status["running"] == true)
        });
        let streams = self.streams.take().context("its traffic runs")?;
        let [v4, v6] = streams.map(UdpTraffic::stop);
        Ok(Member {
            number: self.number,
            called_back: self.called_back,
            source,
            dest,
            runs,
            udp: [v4?, v6?],
            downtime_ms: self.timeline.downtime_ms(),
        })
    }
}

/// What is left of all of them, once the kernel had the time to free it.
fn leaks(lab: &Lab, before: &Snapshot, members: &[Member], vms: &[Vm]) -> Result<Vec<String>> {
    let sessions: Vec<&str> = members
        .iter()
        .flat_map(|member| [&member.source, &member.dest])
        .filter_map(|side| side.report.as_ref()?["session"].as_str())
        .collect();
    let b = lab.network().node(Node::B).name();
    let is_leak = |line: &str| {
        let arrived = vms.iter().filter(|vm| vm.timeline.resume_ns.is_some());
        let kept = |vm: &Vm| is_kept(line, b, &vm.identity.tap);
        !line.starts_with("- process") && !arrived.into_iter().any(kept)
    };
    let deadline = Instant::now() + LEAK_DEADLINE;
    loop {
        let places = lab.network().node_side();
        let mut diff = before.diff(&Snapshot::take(Scope::NamespacesOnly, places)?);
        diff.extend(sessions.iter().copied().flat_map(session_files));
        diff.retain(|line| is_leak(line));
        if diff.is_empty() || Instant::now() >= deadline {
            return Ok(diff);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
