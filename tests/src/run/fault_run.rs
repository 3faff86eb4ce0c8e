//! A migration of disks with one fault in it, and whether it ends as it has to: V goes on where it is,
//! its disks are intact, nothing is left, and the message says what happened.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::disk::DiskLoad;
use super::drives::DriveOptions;
use super::fault::{Fault, Moment};
use super::migration::{Ended, Migration, MigrationOptions};
use super::stage::{Stage, StageOptions, Storage, TrafficSpec};
use crate::lab::{LabConfig, Node, QemuVersion, Qmp};

const MEBIBYTES: u64 = 32;
const FILLED_MIB: u64 = 20;
const DRIVES: usize = 2;
/// Records that V writes to each disk after the end.
const GOES_ON: u64 = 100;
/// RAM that is still to be copied when V stops is copied this fast, and V's memory changes faster: a pause of
/// more than a second.
const SLOW_PATH: u64 = 20_000_000;
const CONTROL_PORT: u16 = 7482;

/// Which fault, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultCase {
    /// Which QEMU.
    pub qemu: QemuVersion,
    /// What happens.
    pub fault: Fault,
    /// When it happens.
    pub moment: Moment,
}

/// What it came to.
#[derive(Debug)]
pub struct FaultRun {
    /// What is not as it has to be.
    pub problems: Vec<String>,
    /// The source's message.
    pub message: String,
    /// From the fault until both sides had ended.
    pub ended_after: Duration,
    /// The longest time in which one of V's disks acknowledged nothing, in ms.
    pub longest_stall_ms: Option<f64>,
    /// What both sides left.
    pub ended: Ended,
}

impl FaultCase {
    /// Words that the source's message has to have, each of them.
    #[must_use]
    pub fn words(self) -> &'static [&'static str] {
        match self.fault {
            // Giving B's disks back takes as long as the session takes to notice: either may come first.
            Fault::LinkCut if self.moment == Moment::Stopped => &[],
            Fault::DestinationKilled | Fault::LinkCut => &["session"],
            Fault::DestinationQemuKilled => &["destination"],
            Fault::DestinationFull => &["drive-virtio-disk", "destination", "No space left"],
            Fault::WritesFailOnB => &["drive-virtio-disk", "destination", "Input/output error"],
            // The reason comes with the end of the job, which QEMU 7.2 puts off while the guest writes on.
            Fault::ReadsFailOnA => &["drive-virtio-disk", "could not be read on the source"],
            // RAM is on its way by then, and goes silent as well: either may be noticed first.
            Fault::PathSilent if matches!(self.moment, Moment::RamCopy | Moment::Stopped) => &[],
            // The mirrors may have ended well by then: what fails is to close the exports, or QEMU's last flush.
            Fault::ExportStopped if self.moment == Moment::Stopped => &["the destination"],
            Fault::ExportStopped | Fault::PathSilent => &["drive-virtio-disk"],
        }
    }

    /// Whether the mirror may never meet the fault: nobody reads A's disks once they are copied, and
    /// nobody writes to B's while V is stopped.
    #[must_use]
    pub fn may_go_unnoticed(self) -> bool {
        match self.fault {
            Fault::ReadsFailOnA => matches!(
                self.moment,
                Moment::Ready | Moment::RamCopy | Moment::Stopped
            ),
            Fault::WritesFailOnB
            | Fault::DestinationFull
            | Fault::ExportStopped
            | Fault::PathSilent => self.moment == Moment::Stopped,
            Fault::DestinationKilled | Fault::DestinationQemuKilled | Fault::LinkCut => false,
        }
    }

    fn stage(self) -> StageOptions {
        StageOptions {
            lab: LabConfig {
                qemu: self.qemu,
                named_drives: true,
                dirty: (self.moment == Moment::Stopped).then_some((30, 16)),
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: 300,
                disk: Some(DiskLoad {
                    rate: 100,
                    blocks: ((MEBIBYTES - FILLED_MIB) << 20) / 4096,
                }),
                ..TrafficSpec::default()
            },
            storage: Storage::Local(MEBIBYTES),
            drives: DriveOptions {
                count: DRIVES,
                filled_mib: FILLED_MIB,
                ..DriveOptions::default()
            },
            ..StageOptions::default()
        }
    }

    fn migration(self) -> MigrationOptions {
        let flags: &[&str] = match self.moment {
            Moment::MirrorStart | Moment::MidMirror => &["--bandwidth=20M"],
            Moment::Ready | Moment::RamCopy => &["--max-bandwidth=25M"],
            Moment::Stopped => &["--downtime=3000"],
        };
        MigrationOptions {
            source_args: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..MigrationOptions::default()
        }
    }
}

/// Plays one case.
///
/// # Errors
///
/// When the stage can't be set, or the moment does not come. How it ends is a result.
pub fn run_with_fault(case: FaultCase) -> Result<FaultRun> {
    let mut stage = Stage::set(case.stage())?;
    if case.moment == Moment::Stopped {
        stage.lab.slow_path_to_b(CONTROL_PORT, SLOW_PATH)?;
    }
    let nodes_before = block_nodes(&mut stage.qmp_a)?;
    let began = Instant::now();
    let mut migration = Migration::begin(&mut stage, &case.migration())?;
    case.moment.wait(&mut migration)?;
    let struck_after = began.elapsed();
    case.fault.strike(&mut migration)?;
    let (ended, timeline) = migration.end()?;
    let ended_after = ended.took.saturating_sub(struck_after);
    let mut problems = Problems::default();
    let message = match &ended.source.report {
        Some(report) => report["error"].as_str().unwrap_or_default().to_owned(),
        None => String::new(),
    };
    if timeline.resume_ns.is_some() {
        problems.unless(case.may_go_unnoticed(), || "V was moved".to_owned());
        let status = ended.source.status;
        problems.unless(status == Some(0), || {
            format!("V was moved, but exit {status:?}")
        });
    } else {
        judge_failure(case, &ended, &message, &mut problems);
        judge_source(&mut stage, &nodes_before, &mut problems)?;
        // A destination that was killed leaves them to the next one.
        if case.fault != Fault::DestinationKilled {
            judge_destination(&mut stage, &mut problems)?;
        }
    }
    let leaks = ended
        .leaks
        .iter()
        .filter(|leak| !excused(case, &stage, leak));
    problems
        .0
        .extend(leaks.map(|leak| format!("left behind: {leak}")));
    forget_the_dead(case, &ended);
    let moved = timeline.resume_ns.is_some();
    let longest_stall_ms = judge_disks(stage, moved, &mut problems)?;
    Ok(FaultRun {
        problems: problems.0,
        message,
        ended_after,
        longest_stall_ms,
        ended,
    })
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn unless(&mut self, good: bool, what: impl FnOnce() -> String) {
        if !good {
            self.0.push(what());
        }
    }
}

fn judge_failure(case: FaultCase, ended: &Ended, message: &str, problems: &mut Problems) {
    let status = ended.source.status;
    problems.unless(status == Some(1), || {
        format!("the source's exit is {status:?}, not 1")
    });
    let status = ended.dest.status;
    let expected = (case.fault != Fault::DestinationKilled).then_some(1);
    problems.unless(status == expected, || {
        format!("the destination's exit is {status:?}, not {expected:?}")
    });
    let report = ended.source.report.as_ref();
    let outcome = report.and_then(|report| report["outcome"].as_str());
    problems.unless(outcome == Some("failed"), || {
        format!("the outcome is {outcome:?}")
    });
    for word in case.words().iter().chain(&["runs on the source"]) {
        problems.unless(message.contains(word), || {
            format!("{word:?} is not in {message:?}")
        });
    }
}

/// V runs on A, and its QEMU there has nothing of the migration any more.
fn judge_source(
    stage: &mut Stage,
    nodes_before: &BTreeSet<String>,
    problems: &mut Problems,
) -> Result<()> {
    let status = stage.qmp_a.command("query-status", Value::Null)?;
    problems.unless(status["running"] == true, || {
        format!("V does not run on A: {status}")
    });
    if let Some(client) = &stage.client {
        let went_on = client.wait_for_writes(GOES_ON);
        problems.unless(went_on.is_ok(), || {
            format!("V does not write any more: {went_on:?}")
        });
    }
    let jobs = stage.qmp_a.command("query-jobs", Value::Null)?;
    problems.unless(jobs.as_array().is_some_and(Vec::is_empty), || {
        format!("jobs on A: {jobs}")
    });
    let nodes = block_nodes(&mut stage.qmp_a)?;
    let more: Vec<_> = nodes.difference(nodes_before).collect();
    problems.unless(more.is_empty(), || format!("block nodes on A: {more:?}"));
    Ok(())
}

/// B's QEMU, if it lives on, serves its disks to nobody.
fn judge_destination(stage: &mut Stage, problems: &mut Problems) -> Result<()> {
    if stage.guest_b.process().try_wait()?.is_none() {
        let exports = stage.qmp_b.command("query-block-exports", Value::Null)?;
        problems.unless(exports.as_array().is_some_and(Vec::is_empty), || {
            format!("exports on B: {exports}")
        });
    }
    Ok(())
}

/// Returns the longest stall.
fn judge_disks(mut stage: Stage, moved: bool, problems: &mut Problems) -> Result<Option<f64>> {
    let (client, silence) = stage.finish_traffic()?;
    problems.unless(moved || silence.is_none(), || {
        format!("V is silent: {silence:?}")
    });
    let Some(disk) = &client.disk else {
        problems.0.push("V wrote nothing".to_owned());
        return Ok(None);
    };
    // A disk that fails under V once it has moved is V's to live with; what it had is still there.
    let intact = match moved {
        true => disk.lost() + disk.torn() == 0,
        false => disk.is_intact(),
    };
    problems.unless(intact, || format!("the disks are not intact: {disk:?}"));
    Ok(disk.longest_stall(0, u64::MAX).map(|stall| stall.ms()))
}

/// The names and drivers of all block nodes that QEMU has, but for those that a fault puts in.
fn block_nodes(qmp: &mut Qmp) -> Result<BTreeSet<String>> {
    let nodes = qmp.command("query-named-block-nodes", Value::Null)?;
    let names = nodes.as_array().into_iter().flatten();
    Ok(names
        .filter_map(|node| Some((node["node-name"].as_str()?, node["drv"].as_str()?)))
        .filter(|(name, _)| !name.starts_with("broken"))
        .map(|(name, driver)| format!("{name} ({driver})"))
        .collect())
}

/// Nobody was left on B to clean up.
fn excused(case: FaultCase, stage: &Stage, leak: &str) -> bool {
    case.fault == Fault::DestinationKilled
        && (leak.contains(stage.lab.network().node(Node::B).name())
            || leak.contains("/sys/fs/bpf")
            || leak.contains("-dest"))
}

/// Removes what a killed destination has left outside of the lab.
fn forget_the_dead(case: FaultCase, ended: &Ended) {
    let report = ended.source.report.as_ref();
    let session = report.and_then(|report| report["session"].as_str());
    if let (Fault::DestinationKilled, Some(session)) = (case.fault, session) {
        for dir in [
            format!("/sys/fs/bpf/katamaran/{session}"),
            format!("/run/katamaran/{session}-destination"),
        ] {
            std::fs::remove_dir_all(dir).ok();
        }
        std::fs::remove_file(format!("/run/katamaran/{session}-destination.journal")).ok();
    }
}
