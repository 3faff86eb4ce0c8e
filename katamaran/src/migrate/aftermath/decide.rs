//! What is to be done about a dead session: a pure function of its journal and of what is found on the node.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::deadline;
use crate::journal::{Record, Standing, Story};
use crate::qmp::command::{MigrationStatus, RunState};
use crate::role::Role;

/// What is found of a session.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// The QEMU that it used; `None` when that is gone.
    pub(super) qemu: Option<QemuFacts>,
    /// Programs of ours are pinned.
    pub(super) programs: bool,
    /// They redirect, and have retained copies of what they redirected.
    pub(super) retained: bool,
    /// A tunnel's device, a pair into the pod.
    pub(super) devices: Vec<String>,
    /// Our plug is on a tap.
    pub(super) plug: bool,
    /// The taps' rings, in packets, as far as the taps exist.
    pub(super) rings: Vec<Option<u32>>,
    /// Directories of sockets.
    pub(super) directories: Vec<PathBuf>,
}

/// What QEMU says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QemuFacts {
    pub(super) status: RunState,
    pub(super) running: bool,
    pub(super) migration: Option<MigrationStatus>,
    /// Jobs or nodes of ours.
    pub(super) mirrors: bool,
    /// Exports of ours.
    pub(super) exports: bool,
}

impl Facts {
    pub(super) fn runs_here(&self) -> bool {
        self.qemu.as_ref().is_some_and(|qemu| qemu.running)
    }
}

/// One thing to do, in the order in which they must be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Deed {
    RemoveMirrors,
    CancelMigration,
    ReturnPackets,
    AwaitQuiet { limit: Duration },
    RemovePrograms,
    ResumeVm,
    RestoreQemu,
    RemoveExports,
    EndQemu,
    OpenPlug,
    RemovePlug,
    ShortenRing { nic: usize, to: u32 },
    RemoveDevice(String),
    RemoveDirectory(PathBuf),
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveMirrors => f.write_str("remove the mirrors of the drives from QEMU"),
            Self::CancelMigration => f.write_str("cancel QEMU's migration"),
            Self::ReturnPackets => {
                f.write_str("put the packets into the VM's tap that were redirected")
            }
            Self::AwaitQuiet { limit } => write!(
                f,
                "wait until the network sends the VM's packets to the destination by itself, {} s at most",
                limit.as_secs()
            ),
            Self::RemovePrograms => f.write_str("take the programs off, and with them a redirect"),
            Self::ResumeVm => f.write_str("let the VM run here again"),
            Self::RestoreQemu => f.write_str("set QEMU's migration as it was before"),
            Self::RemoveExports => f.write_str("close QEMU's exports of the drives"),
            Self::EndQemu => f.write_str("end QEMU, whose copy of the VM must not run here"),
            Self::OpenPlug => f.write_str("let the packets go that the plug holds"),
            Self::RemovePlug => f.write_str("remove the plug from the tap"),
            Self::ShortenRing { to, .. } => write!(f, "give the tap's ring its {to} packets back"),
            Self::RemoveDevice(name) => write!(f, "remove device {name}"),
            Self::RemoveDirectory(path) => write!(f, "remove {}", path.display()),
        }
    }
}

/// What is to be done.
///
/// # Errors
/// Why nothing may be done.
pub(super) fn decide(story: &Story, facts: &Facts) -> Result<Vec<Deed>, String> {
    let mut deeds = match story.header.role {
        Role::Source => of_source(story, facts)?,
        Role::Destination => of_destination(story, facts)?,
    };
    deeds.extend(facts.devices.iter().cloned().map(Deed::RemoveDevice));
    deeds.extend(facts.directories.iter().cloned().map(Deed::RemoveDirectory));
    Ok(deeds)
}

fn of_source(story: &Story, facts: &Facts) -> Result<Vec<Deed>, String> {
    let session = story.header.session;
    // Nothing is left here that could run.
    let Some(qemu) = &facts.qemu else {
        let given_away = matches!(
            story.standing(),
            Standing::CommitSent | Standing::CommitReceived | Standing::Running
        );
        return Ok(end_of_way(story, facts, given_away).collect());
    };
    match story.standing() {
        Standing::CommitSent | Standing::CommitReceived => Err(format!(
            "COMMIT was sent to {}, and its answer is not known: run `katamaran resolve {session}` on that node, then here",
            story.header.peer
        )),
        Standing::Running if qemu.running => Err(
            "the VM was given to the destination, and runs here as well: somebody resumed it. Find out which of the two \
             is to go on and end the other one's QEMU"
                .to_owned(),
        ),
        Standing::Running => {
            let end = story.header.ends_qemu.then_some(Deed::EndQemu);
            Ok(end_of_way(story, facts, true).chain(end).collect())
        }
        Standing::BeforeCommit | Standing::Discarded => Ok(back_to_source(story, facts, qemu)),
    }
}

/// The programs, and with them the way that packets take to the destination. Where the VM runs there, not before the network has found
/// another.
fn end_of_way(story: &Story, facts: &Facts, in_use: bool) -> impl Iterator<Item = Deed> {
    let wanted = story.header.convergence_s.map(Duration::from_secs);
    let limit = wanted.unwrap_or(deadline::CONVERGENCE);
    let deeds = [
        in_use.then_some(Deed::AwaitQuiet { limit }),
        Some(Deed::RemovePrograms),
    ];
    let there = facts.programs;
    deeds.into_iter().flatten().filter(move |_| there)
}

/// The VM never left: all that was set up goes, and it runs.
fn back_to_source(story: &Story, facts: &Facts, qemu: &QemuFacts) -> Vec<Deed> {
    let ours = story.has(&Record::Migrating) && !story.has(&Record::Resumed);
    let under_way = qemu
        .migration
        .as_ref()
        .is_some_and(|status| !status.is_final() && *status != MigrationStatus::None);
    // QEMU itself stops it for the switch-over; what somebody else has paused stays paused.
    let stopped_by_us = match qemu.status {
        RunState::FinishMigrate | RunState::Postmigrate => ours,
        RunState::Paused => story.has_stopped_vm(),
        _ => false,
    };
    let settings = story
        .records
        .iter()
        .any(|record| matches!(record, Record::QemuSettings { .. }));
    [
        (qemu.mirrors, Deed::RemoveMirrors),
        (ours && under_way, Deed::CancelMigration),
        (facts.retained, Deed::ReturnPackets),
        (facts.programs, Deed::RemovePrograms),
        (!qemu.running && stopped_by_us, Deed::ResumeVm),
        (settings, Deed::RestoreQemu),
        (qemu.exports, Deed::RemoveExports),
    ]
    .into_iter()
    .filter_map(|(wanted, deed)| wanted.then_some(deed))
    .collect()
}

fn of_destination(story: &Story, facts: &Facts) -> Result<Vec<Deed>, String> {
    let session = story.header.session;
    let qemu = facts.qemu.as_ref();
    let runs = facts.runs_here();
    match (story.standing(), qemu) {
        (Standing::BeforeCommit | Standing::Discarded, Some(_)) if runs => Err(
            "the VM runs here, though it is not this node's: somebody resumed it. Find out whether it also runs on the source, \
             and end one of the two QEMUs"
                .to_owned(),
        ),
        (Standing::CommitReceived, Some(_)) if !runs => Err(format!(
            "COMMIT came, and the VM does not run: `katamaran resolve {session} --run` runs it here, \
             `katamaran resolve {session} --discard` gives it up in favour of the source"
        )),
        (Standing::CommitReceived, None) if story.source_may_ask() => Err(format!(
            "COMMIT came, and QEMU is gone: `katamaran resolve {session} --discard` gives the VM back to the source"
        )),
        (Standing::Running | Standing::CommitReceived | Standing::CommitSent, _) => {
            let open = facts.plug.then_some(Deed::OpenPlug);
            Ok(open.into_iter().chain(end_of_way(story, facts, runs)).collect())
        }
        (Standing::BeforeCommit | Standing::Discarded, _) => {
            let listened = story.has(&Record::Listening);
            let end = qemu.filter(|_| listened).map(|_| Deed::EndQemu);
            let exports = qemu.filter(|qemu| qemu.exports && !listened);
            let rings = story.records.iter().filter_map(|record| match record {
                Record::Ring { before, nic } => Some((*nic, *before)),
                _ => None,
            });
            let is_longer = |(nic, before): &(usize, u32)| {
                let now = facts.rings.get(*nic).copied().flatten();
                now.is_some_and(|now| now > *before)
            };
            let rings = rings.filter(is_longer);
            Ok(end
                .into_iter()
                .chain(exports.map(|_| Deed::RemoveExports))
                .chain(end_of_way(story, facts, false))
                .chain(facts.plug.then_some(Deed::RemovePlug))
                .chain(rings.map(|(nic, to)| Deed::ShortenRing { nic, to }))
                .collect())
        }
    }
}

#[cfg(test)]
mod tests;
