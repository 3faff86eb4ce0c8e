//! What must hold, whatever broke.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::copies::{both_ran, ran_on_b};
use super::moment::Sign;
use super::trail::{Struck, Written};
use super::{Fault, FaultCase, Moment, disks as drives};
use crate::run::katamaran::Role;
use crate::run::migration::Ended;
use crate::run::result::{ClientResult, SideResult};
use crate::run::stage::Stage;
use crate::run::timeline::Timeline;

/// Whoever is told to end before COMMIT has ended by then (US-6).
const PROMPT: Duration = Duration::from_secs(10);
/// Exit status of a migration that is done, with and without something left behind.
const DONE: &[Option<i32>] = &[Some(0), Some(5)];

/// All that is known of a case.
pub(super) struct Facts<'a> {
    pub(super) case: FaultCase,
    pub(super) session: &'a str,
    pub(super) struck: &'a Struck,
    pub(super) written: &'a Written,
    pub(super) ended: &'a Ended,
    pub(super) ended_at: [Instant; 2],
    pub(super) timeline: &'a Timeline,
    /// Whether V runs on A and on B, when all is over.
    pub(super) runs: [bool; 2],
}

/// How far COMMIT came, by what the source has written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    NotSent,
    NotAnswered,
    Answered,
}

impl Facts<'_> {
    fn has(&self, role: Role, record: &'static str) -> bool {
        self.written.has(Sign::Record(role, record))
    }

    fn commit(&self) -> Commit {
        let sent = self.has(Role::Source, "commit-sent");
        let void = self.has(Role::Source, "commit-had-no-effect");
        match self.has(Role::Source, "running") {
            true => Commit::Answered,
            false if sent && !void => Commit::NotAnswered,
            false => Commit::NotSent,
        }
    }

    /// V's QEMU was killed where V ran, or was to run and nobody else may.
    fn vm_is_dead(&self) -> bool {
        match self.case.fault {
            Fault::SourceQemuKilled => !ran_on_b(self.timeline),
            Fault::DestinationQemuKilled => ran_on_b(self.timeline),
            _ => false,
        }
    }
}

/// Adds what does not hold.
pub(super) fn judge(facts: &Facts<'_>, problems: &mut Vec<String>) {
    copies(facts, problems);
    source(facts, problems);
    destination(facts, problems);
    for (role, ended_at) in [Role::Source, Role::Dest].into_iter().zip(facts.ended_at) {
        let took = ended_at - facts.struck.at;
        if facts.case.fault.asks(role) && facts.commit() == Commit::NotSent && took > PROMPT {
            problems.push(format!("{role:?} took {took:?} to end"));
        }
    }
}

/// Never two, and one in the end.
fn copies(facts: &Facts<'_>, problems: &mut Vec<String>) {
    let killed = facts.case.fault.kills_qemu();
    let killed = killed.map(|node| (node, facts.struck.at_ns));
    let both = both_ran(facts.timeline, killed);
    if both > 0 {
        let ms = Duration::from_nanos(both);
        problems.push(format!("V RAN TWICE for {ms:?}"));
    }
    let running = facts.runs.iter().filter(|runs| **runs).count();
    let expected = usize::from(!facts.vm_is_dead());
    if running != expected {
        problems.push(format!("{running} copies run in the end, not {expected}"));
    }
    let fault = facts.case.fault;
    if fault.is_of_disks() && facts.runs[1] && !may_go_unnoticed(facts.case) {
        problems.push("V was moved".to_owned());
    }
    if facts.commit() == Commit::NotSent && facts.runs[1] {
        problems.push("V runs on B, and COMMIT was never sent".to_owned());
    }
}

fn source(facts: &Facts<'_>, problems: &mut Vec<String>) {
    let FaultCase { fault, moment, .. } = facts.case;
    let side = &facts.ended.source;
    let before = moment == Moment::Prepare;
    let (statuses, words): (&[Option<i32>], &[&str]) = match facts.commit() {
        _ if fault.kills(Role::Source) => (&[None], &[]),
        Commit::Answered => (DONE, &[]),
        Commit::NotAnswered => (
            &[Some(4)],
            &[
                "COMMIT",
                "stays stopped on the source",
                "katamaran resolve",
                "on the destination",
            ],
        ),
        Commit::NotSent if fault.asks(Role::Source) => {
            (&[Some(130)], &["interrupted during", "the VM goes on here"])
        }
        Commit::NotSent if fault == Fault::SourceQemuKilled => (&[Some(1), Some(2)], &["QEMU"]),
        // What a QEMU that does not answer runs can't be told.
        Commit::NotSent if fault == Fault::SourceQemuFrozen => (&[Some(1), Some(2)], &[]),
        Commit::NotSent if before => (&[Some(1), Some(2)], &[]),
        Commit::NotSent => (
            &[Some(1)],
            &["The VM runs on the source; it is safe to retry"],
        ),
    };
    expect("source", side, statuses, words, problems);
    let error = error(side);
    if facts.commit() == Commit::NotSent {
        for word in own_words(facts.case) {
            if !word.split('|').any(|word| error.contains(word)) {
                problems.push(format!("{word:?} is not in {error:?}"));
            }
        }
        if facts.vm_is_dead() && error.contains("The VM runs on the source") {
            problems.push(format!("the VM is dead, and the source says {error:?}"));
        }
    }
}

fn destination(facts: &Facts<'_>, problems: &mut Vec<String>) {
    let fault = facts.case.fault;
    let side = &facts.ended.dest;
    // A journal that is gone within milliseconds may not have been seen to the end.
    let answered = facts.commit() == Commit::Answered;
    let received = answered || facts.has(Role::Dest, "commit-received");
    let (statuses, words): (&[Option<i32>], &[&str]) = match received {
        _ if fault.kills(Role::Dest) => (&[None], &[]),
        true if answered || facts.has(Role::Dest, "running") => (DONE, &[]),
        true => (&[Some(4)], &["COMMIT came", facts.session]),
        false if fault.asks(Role::Dest) => (&[Some(130)], &["does not run here"]),
        false => (&[Some(1), Some(2)], &[]),
    };
    expect("destination", side, statuses, words, problems);
}

/// Its exit status is one of these, and its message has all of these words.
fn expect(
    who: &str,
    side: &SideResult,
    statuses: &[Option<i32>],
    words: &[&str],
    problems: &mut Vec<String>,
) {
    if !statuses.contains(&side.status) {
        problems.push(format!(
            "the {who}'s exit is {:?}, not {statuses:?}",
            side.status
        ));
    }
    let error = error(side);
    for word in words {
        if !error.contains(word) {
            problems.push(format!("the {who}'s message lacks {word:?}: {error:?}"));
        }
    }
    if side.status.is_some_and(|status| status != 0 && status != 5) && error.is_empty() {
        problems.push(format!("the {who} does not say why"));
    }
}

fn error(side: &SideResult) -> &str {
    let report = side.report.as_ref();
    report
        .and_then(|report| report["error"].as_str())
        .unwrap_or_default()
}

/// Words that the source's message has to have, each of them (or what is behind a bar): what failed, and on which side.
fn own_words(case: FaultCase) -> &'static [&'static str] {
    let late = matches!(case.moment, Moment::Copy | Moment::Stopped);
    match case.fault {
        // Giving B's disks back takes as long as the session takes to notice: either may come first.
        Fault::LinkCut | Fault::LinkSilent
            if case.has_disks() && case.moment == Moment::Stopped =>
        {
            &[]
        }
        // What carries RAM may notice before the session does.
        Fault::DestinationKilled | Fault::LinkCut | Fault::LinkSilent => &["session|RAM relay"],
        Fault::DestinationQemuKilled => &["destination"],
        Fault::SourceQemuFrozen => &["QEMU|QMP"],
        Fault::DestinationInterrupted | Fault::DestinationTerminated => {
            &["the destination was interrupted"]
        }
        Fault::DestinationFull => &["drive-virtio-disk", "destination", "No space left"],
        Fault::WritesFailOnB => &["drive-virtio-disk", "destination", "Input/output error"],
        // The reason comes with the end of the job, which QEMU 7.2 puts off while the guest writes on.
        Fault::ReadsFailOnA => &["drive-virtio-disk", "could not be read on the source"],
        Fault::PathSilent if !case.has_disks() => &["RAM relay", "acknowledged"],
        // RAM is on its way by then, and goes silent as well: either may be noticed first.
        Fault::PathSilent if late => &[],
        // The mirrors may have ended well by then: what fails is to close the exports, or QEMU's last flush.
        Fault::ExportStopped if case.moment == Moment::Stopped => &["the destination"],
        // A QEMU whose writes wait for B may not even say how its jobs are.
        Fault::PathSilent => &["drive-virtio-disk|block jobs on the source"],
        Fault::ExportStopped => &["drive-virtio-disk"],
        Fault::SourceKilled
        | Fault::SourceFrozen
        | Fault::DestinationFrozen
        | Fault::DestinationQemuFrozen
        | Fault::SourceQemuKilled
        | Fault::LinkLossy
        | Fault::SourceInterrupted
        | Fault::SourceTerminated => &[],
    }
}

/// Whether the mirror may never meet the fault: nobody reads A's disks once they are copied, and nobody writes to B's
/// while V is stopped.
fn may_go_unnoticed(case: FaultCase) -> bool {
    match case.fault {
        Fault::ReadsFailOnA => {
            matches!(case.moment, Moment::Ready | Moment::Copy | Moment::Stopped)
        }
        _ => case.moment == Moment::Stopped,
    }
}

/// A QEMU that goes on after it stood still carries out a `stop` that it was sent, and discards what it has just read.
const DISCARDED: u64 = 4;

/// No packet is lost where hosts, QEMUs and links stay up, and next to none where QEMU only stood still.
pub(super) fn packets(case: FaultCase, client: &ClientResult, problems: &mut Vec<String>) {
    let lost = client.lost();
    let bearable = match case.fault {
        fault if fault.costs_no_packet() => 0,
        Fault::SourceQemuFrozen => DISCARDED,
        _ => return,
    };
    if lost > bearable {
        problems.push(format!("{lost} packets are lost"));
    }
}

/// The QEMU on A has nothing of the migration any more.
pub(super) fn nothing_of_the_mirrors(
    stage: &mut Stage,
    nodes_before: &BTreeSet<String>,
    problems: &mut Vec<String>,
) -> Result<()> {
    let jobs = stage.qmp_a.command("query-jobs", Value::Null)?;
    if !jobs.as_array().is_some_and(Vec::is_empty) {
        problems.push(format!("jobs on A: {jobs}"));
    }
    let nodes = drives::block_nodes(&mut stage.qmp_a)?;
    let more: Vec<_> = nodes.difference(nodes_before).collect();
    if !more.is_empty() {
        problems.push(format!("block nodes on A: {more:?}"));
    }
    if stage.guest_b.process().try_wait()?.is_none() {
        let exports = stage.qmp_b.command("query-block-exports", Value::Null)?;
        if !exports.as_array().is_some_and(Vec::is_empty) {
            problems.push(format!("exports on B: {exports}"));
        }
    }
    Ok(())
}

/// Returns the longest stall.
pub(super) fn disks(
    case: FaultCase,
    runs: [bool; 2],
    client: &ClientResult,
    problems: &mut Vec<String>,
) -> Option<f64> {
    let disk = client.disk.as_ref()?;
    // A disk that fails under V once it has moved is V's to live with, and a QEMU that is killed leaves a write
    // half done; what was acknowledged is still there.
    let intact = match runs == [true, false] && case.fault.kills_qemu().is_none() {
        false => disk.lost() + disk.torn() == 0,
        true => disk.is_intact(),
    };
    if !intact {
        problems.push(format!("the disks are not intact: {disk:?}"));
    }
    disk.longest_stall(0, u64::MAX).map(|stall| stall.ms())
}
