//! Plays a migration with one fault in it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::judge::{self, Facts};
use super::trail::{AtOnce, Struck, Target, Trail, Written};
use super::{Fault, FaultCase, Moment, disks, operator};
use crate::lab::{LabConfig, Node};
use crate::leak::{Scope, Snapshot, session_files};
use crate::run::disk::DiskLoad;
use crate::run::drives::DriveOptions;
use crate::run::katamaran::Role;
use crate::run::migration::{Ended, Migration, MigrationOptions, leaks};
use crate::run::result::{ClientResult, said_by_guest};
use crate::run::stage::{Stage, StageOptions, Storage, TrafficSpec};
use crate::run::timeline::Timeline;

pub(super) const CONTROL_PORT: u16 = 7482;
const MEBIBYTES: u64 = 32;
const FILLED_MIB: u64 = 20;
const DRIVES: usize = 2;
/// Records that V writes to each disk after the end.
const GOES_ON: u64 = 100;
/// RAM that is still to be copied when V stops is copied this fast, and V's memory changes faster: a pause of
/// more than a second.
const SLOW_PATH: u64 = 20_000_000;
/// A slow and lossy link.
const BAD_PATH: u64 = 10_000_000;
/// How long a process stands still: longer than the other node waits for a word from it.
const FROZEN: Duration = Duration::from_secs(15);
/// Whoever has not ended by then hangs. A destination that outlives its source delivers for up to a minute.
const HANGS: Duration = Duration::from_secs(100);
/// What QEMU has to say of the operator's deeds comes by then.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(50);

/// What it came to.
#[derive(Debug)]
pub struct FaultRun {
    /// What is not as it has to be.
    pub problems: Vec<String>,
    /// The last moment that both sides' journals and logs tell of when it struck.
    pub reached: Option<Moment>,
    /// Where V runs in the end.
    pub runs_on: Vec<Node>,
    /// UDP packets of the client's that never came back.
    pub lost: u64,
    /// How many of them V had received, and its own kernel dropped: they, or the answers.
    pub dropped_in_guest: Option<u64>,
    /// What the operator had to run, in few words.
    pub operator: Vec<&'static str>,
    /// The message: the source's, or where that one is silent, the destination's.
    pub message: String,
    /// From the fault until both sides had ended.
    pub ended_after: Duration,
    /// The longest time in which one of V's disks acknowledged nothing, in ms.
    pub longest_stall_ms: Option<f64>,
    /// What both sides left.
    pub ended: Ended,
}

/// Plays one case.
///
/// # Errors
///
/// When the stage can't be set, the moment does not come, or a side hangs. How it ends otherwise is a result.
pub fn run_with_fault(case: FaultCase) -> Result<FaultRun> {
    let mut stage = Stage::set(case.stage())?;
    if (case.has_disks() || case.fault.is_of_disks()) && case.moment == Moment::Stopped {
        stage.lab.slow_path_to_b(CONTROL_PORT, SLOW_PATH)?;
    }
    let before = Snapshot::take(Scope::NamespacesOnly, stage.nodes())?;
    let nodes_before = disks::block_nodes(&mut stage.qmp_a)?;
    let played = play(case, &mut stage)?;
    let Played {
        ended,
        mut timeline,
        struck,
        written,
        ended_at,
    } = played;
    let session = written.session().context("no side has written a journal")?;
    let settled = operator::settle(&mut stage, &session, &mut timeline)?;
    stage.watch(&mut timeline, LAST_WORDS, Duration::ZERO)?;
    mend(case, &mut stage, &timeline)?;
    let runs = [Node::A, Node::B].map(|node| runs(&mut stage, node));
    let mut problems = settled.problems;
    let facts = Facts {
        case,
        session: &session,
        struck: &struck,
        written: &written,
        ended: &ended,
        ended_at,
        timeline: &timeline,
        runs,
    };
    judge::judge(&facts, &mut problems);
    if case.has_disks() && runs[0] {
        judge::nothing_of_the_mirrors(&mut stage, &nodes_before, &mut problems)?;
        let client = stage.client.as_ref().context("the traffic is on")?;
        if let Err(error) = client.wait_for_writes(GOES_ON) {
            problems.push(format!("V does not write any more: {error:#}"));
        }
    }
    let (client, silence) = match runs {
        [false, false] => (stage.stop_traffic()?, None),
        _ => stage.finish_traffic()?,
    };
    let guest = match runs {
        [false, false] => None,
        _ => stage.lab.guest_command("status").ok(),
    };
    let dropped_in_guest = guest.and_then(|said| said_by_guest(&said, "udp_dropped"));
    problems.extend(silence.map(|silence| format!("V is silent: {silence}")));
    judge::packets(case, &client, &mut problems);
    let longest_stall_ms = judge::disks(case, runs, &client, &mut problems);
    // Where V has run, its tap keeps the longer ring.
    let was_on_b = timeline.resume_ns.is_some();
    let left = leaks(
        &stage,
        &before,
        Scope::NamespacesOnly,
        Some(&session),
        was_on_b,
    )?;
    problems.extend(left.iter().map(|line| format!("left behind: {line}")));
    forget(&session);
    Ok(FaultRun {
        problems,
        reached: Moment::last(&struck.written),
        runs_on: running(runs),
        lost: client.lost(),
        dropped_in_guest,
        operator: settled.deeds,
        message: message(&ended),
        ended_after: ended_at.into_iter().max().unwrap_or(struck.at) - struck.at,
        longest_stall_ms,
        ended,
    })
}

/// A migration until both sides have ended.
struct Played {
    ended: Ended,
    timeline: Timeline,
    struck: Struck,
    written: Written,
    /// When the source and the destination had.
    ended_at: [Instant; 2],
}

fn play(case: FaultCase, stage: &mut Stage) -> Result<Played> {
    let mut migration = Migration::begin(stage, &case.migration())?;
    let at_once = case.fault.at_once();
    let sign = (!case.moment.is_of_disks()).then(|| case.moment.sign());
    let trail = Trail::follow(&mut migration, sign, at_once)?;
    migration.look_until(&format!("{:?}", case.moment), |migration| {
        if sign.is_none() && disks::has_come(case.moment, migration)? {
            trail.strike(at_once);
        }
        Ok(trail.struck().is_some())
    })?;
    let struck = trail.struck().context("it has struck")?;
    case.fault.strike(&mut migration)?;
    if matches!(at_once, AtOnce::StandStill) {
        trail.go_on();
    }
    let mut frozen = case.fault.freezes();
    let mut ended_at = [None; 2];
    while ended_at.contains(&None) || frozen.is_some() {
        migration.look()?;
        if struck.at.elapsed() >= FROZEN
            && let Some(target) = frozen.take()
        {
            trail.signal(target, Signal::SIGCONT);
        }
        for (role, ended_at) in [Role::Source, Role::Dest].into_iter().zip(&mut ended_at) {
            if !migration.side(role).runs()? {
                ended_at.get_or_insert_with(Instant::now);
            }
        }
        ensure!(
            struck.at.elapsed() < HANGS,
            "a side hangs\n{}",
            migration.said()
        );
    }
    let (ended, timeline) = migration.end()?;
    Ok(Played {
        ended,
        timeline,
        struck,
        written: trail.written(),
        ended_at: ended_at.map(|at| at.unwrap_or_else(Instant::now)),
    })
}

impl Fault {
    /// What can be done within microseconds of the moment.
    fn at_once(self) -> AtOnce {
        let target = match (self.signal(), self.kills_qemu(), self.freezes()) {
            (Some((role, signal)), ..) => Some((Target::Katamaran(role), signal)),
            (_, Some(node), _) => Some((Target::Qemu(node), Signal::SIGKILL)),
            (.., Some(target)) => Some((target, Signal::SIGSTOP)),
            (None, None, None) => None,
        };
        match target {
            Some((target, signal)) => AtOnce::Signal(target, signal),
            None if self.is_of_disks() => AtOnce::Note,
            None => AtOnce::StandStill,
        }
    }

    /// Makes it happen, if that is not a signal's affair.
    fn strike(self, migration: &mut Migration<'_>) -> Result<()> {
        let stage = &mut *migration.stage;
        match self {
            Self::LinkCut => stage.lab.cut_link(Node::B)?,
            Self::LinkSilent => {
                let port = Node::B.fabric_port();
                stage.lab.drop_in_fabric(&format!("iifname {port}"))?;
                stage.lab.drop_in_fabric(&format!("oifname {port}"))?;
            }
            Self::LinkLossy => {
                // A path that is slow already stays as it is.
                stage.lab.slow_path_to_b(CONTROL_PORT, BAD_PATH).ok();
                for port in ["dport", "sport"] {
                    let some = format!("tcp {port} {CONTROL_PORT} numgen random mod 20 == 0");
                    stage.lab.drop_in_fabric(&some)?;
                }
            }
            _ => disks::strike(self, migration)?,
        }
        Ok(())
    }
}

/// Ends what was wrong with the link, or with B's file system.
fn mend(case: FaultCase, stage: &mut Stage, timeline: &Timeline) -> Result<()> {
    match case.fault {
        Fault::LinkCut => {
            stage.lab.mend_link(Node::B)?;
            if timeline.resume_ns.is_some() {
                stage.lab.converge()?;
            }
        }
        Fault::LinkSilent | Fault::LinkLossy => stage.lab.heal_fabric()?,
        Fault::DestinationFull => stage.free_destination()?,
        _ => {}
    }
    Ok(())
}

fn runs(stage: &mut Stage, node: Node) -> bool {
    let qmp = match node {
        Node::A => &mut stage.qmp_a,
        Node::B => &mut stage.qmp_b,
    };
    let status = qmp.command("query-status", Value::Null);
    status.is_ok_and(|status| status["running"] == true)
}

fn running(runs: [bool; 2]) -> Vec<Node> {
    let nodes = [Node::A, Node::B].into_iter().zip(runs);
    nodes
        .filter_map(|(node, runs)| runs.then_some(node))
        .collect()
}

/// What a case that went wrong has left is told by now, and must not get in the way of the next one.
fn forget(session: &str) {
    for line in session_files(session) {
        let path = Path::new(line.trim_start_matches("+ file "));
        std::fs::remove_dir_all(path)
            .or_else(|_| std::fs::remove_file(path))
            .ok();
    }
}

fn message(ended: &Ended) -> String {
    let sides = [("source", &ended.source), ("destination", &ended.dest)];
    let told = sides.into_iter().find_map(|(who, side)| {
        let error = side.report.as_ref()?["error"].as_str()?;
        Some(format!("{who}: {error}"))
    });
    told.unwrap_or_default()
}

impl Stage {
    /// Stops the traffic of a V that does not run any more.
    fn stop_traffic(&mut self) -> Result<ClientResult> {
        let client = self.client.take();
        client.context("the traffic was stopped before")?.stop()
    }
}

impl FaultCase {
    fn stage(self) -> StageOptions {
        let disks = self.has_disks();
        StageOptions {
            lab: LabConfig {
                qemu: self.qemu,
                named_drives: disks,
                second_nic: self.second_nic,
                dirty: (disks && self.moment == Moment::Stopped).then_some((30, 16)),
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: 300,
                pps_v6: 300,
                pps_second: if self.second_nic { 200 } else { 0 },
                disk: disks.then_some(DiskLoad {
                    rate: 100,
                    blocks: ((MEBIBYTES - FILLED_MIB) << 20) / 4096,
                }),
                ..TrafficSpec::default()
            },
            storage: match disks {
                true => Storage::Local(MEBIBYTES),
                false => Storage::Diskless,
            },
            drives: DriveOptions {
                count: DRIVES,
                filled_mib: FILLED_MIB,
                ..DriveOptions::default()
            },
            ..StageOptions::default()
        }
    }

    fn migration(self) -> MigrationOptions {
        let logged = "--log-level=info,katamaran=debug";
        let flags: &[&str] = match self.moment {
            _ if !self.has_disks() => &[],
            Moment::MirrorStart | Moment::MidMirror => &["--bandwidth=20M"],
            Moment::Ready | Moment::Copy => &["--max-bandwidth=25M"],
            Moment::Stopped => &["--downtime=3000"],
            _ => &[],
        };
        MigrationOptions {
            source_args: flags
                .iter()
                .chain([&logged])
                .map(|flag| (*flag).to_owned())
                .collect(),
            dest_args: vec![logged.to_owned()],
            // What is left before the operator has been there is nobody's fault.
            leaks: None,
            // A side that does not end by itself hangs.
            patience: HANGS * 2,
            deadline: HANGS * 3,
            ..MigrationOptions::default()
        }
    }
}
