//! Settles a session of which one node can't tell where its VM is, without ever letting two copies run.
//!
//! ```text
//!   destination                                     source
//!     the VM runs        ─▶ receipt "runs"      ─▶  its QEMU is ended
//!     --discard: QEMU is ended, and seen to be
//!                        ─▶ receipt "discarded" ─▶  the VM is resumed
//! ```
//!
//! A receipt is given out only for what is true for good: a copy that runs was committed, one that is discarded does not exist any
//! more. The source believes nothing else.

use std::path::Path;

use super::apply::Context;
use super::clean_dead;
use super::decide::Deed;
use super::found::Cleaned;
use super::look::{Seen, look};
use crate::journal::{
    self, DIRECTORY, Found, Journal, Receipts, Record, Role, Standing, Story, adopt,
};
use crate::migrate::error::MigrateError;
use crate::migrate::node::refused;
use crate::net::NetNs;
use crate::qmp::command::RunState;
use crate::session_id::SessionId;

/// What the operator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: what is known is told.
    Nothing,
    /// On the source: the destination's copy is gone, by this receipt.
    DestinationDiscarded(String),
    /// On the source: the VM runs on the destination, by this receipt.
    DestinationRuns(String),
    /// On the destination: its copy is to go.
    Discard,
    /// On the destination: its copy is to run.
    Run,
}

/// What came of it.
#[derive(Debug)]
pub struct Resolved {
    /// For the operator.
    pub text: String,
    /// What there was to remove.
    pub cleaned: Option<Cleaned>,
    /// Whether this node knows now where the VM is.
    pub settled: bool,
}

impl Resolved {
    fn undecided(text: String) -> Self {
        Self {
            text,
            cleaned: None,
            settled: false,
        }
    }

    fn settled(text: String, cleaned: Option<Cleaned>) -> Self {
        Self {
            text,
            cleaned,
            settled: true,
        }
    }
}

/// Settles a session on this node.
///
/// # Errors
/// What was asked for could let two copies run, or does not fit this node. Nothing is changed then.
pub async fn resolve(session: SessionId, answer: Answer) -> Result<Resolved, MigrateError> {
    let found = find(session)?;
    let path = found.path.clone();
    let settled = found.settled;
    let living = found.living;
    let story = found.story?;
    if living {
        return Err(refused(format!(
            "process {} looks after session {session}: wait until it has ended",
            story.header.pid
        )));
    }
    let Some((journal, story)) = adopt(&path)? else {
        return Err(refused(format!(
            "somebody else is at work on session {session}"
        )));
    };
    match story.header.role {
        Role::Source => on_source(&journal, story, answer).await,
        Role::Destination if settled => {
            must_fit(&story, &answer)?;
            receipt(&story, None)
        }
        Role::Destination => on_destination(&journal, story, answer).await,
    }
}

/// The session's journal on this node. Where two nodes share one /run, the network namespace tells them apart.
fn find(session: SessionId) -> Result<Found, MigrateError> {
    let mut all = journal::list(Path::new(DIRECTORY))?;
    all.extend(journal::settled(Path::new(DIRECTORY))?);
    all.retain(|found| {
        let story = found.story.as_ref();
        story.is_ok_and(|story| story.header.session == session)
    });
    if all.len() > 1
        && let Ok(here) = NetNs::current()
    {
        all.retain(|found| {
            let story = found.story.as_ref();
            story.is_ok_and(|story| story.header.netns == here.inode())
        });
    }
    match (all.pop(), all.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => Err(refused(format!(
            "session {session} has several journals here: run this in the network namespace of one node"
        ))),
        (None, _) => Err(refused(format!(
            "there is no session {session} on this node (see `katamaran status`)"
        ))),
    }
}

async fn on_source(
    journal: &Journal,
    mut story: Story,
    answer: Answer,
) -> Result<Resolved, MigrateError> {
    let session = story.header.session;
    if story.standing() != Standing::CommitSent {
        return Ok(Resolved::settled(
            format!(
                "session {session} is not undecided: `katamaran cleanup` looks after what it left"
            ),
            None,
        ));
    }
    let receipts = receipts(&story)?;
    let (record, text) = match answer {
        Answer::Nothing => {
            return Ok(Resolved::undecided(format!(
                "COMMIT was sent to {} and never answered; the VM stays stopped here.\nOn the destination run: katamaran resolve \
                 {session}\nIt says what to run here.",
                story.header.peer
            )));
        }
        Answer::Discard | Answer::Run => {
            return Err(refused(
                "--discard and --run are for the destination; this node was the source",
            ));
        }
        Answer::DestinationDiscarded(code) if code == receipts.discarded => (
            Record::CommitHadNoEffect,
            "the destination's copy is gone: the VM is the source's again",
        ),
        Answer::DestinationRuns(code) if code == receipts.runs => (
            Record::Running,
            "the VM runs on the destination: the copy here is given up",
        ),
        Answer::DestinationDiscarded(_) | Answer::DestinationRuns(_) => {
            return Err(refused(format!(
                "this is not the receipt for that: nothing is changed. On the destination run: katamaran resolve {session}"
            )));
        }
    };
    journal.append(&record)?;
    story.records.push(record);
    let cleaned = clean_dead(journal, story, true).await;
    Ok(Resolved::settled(
        format!("{session}: {text}"),
        Some(cleaned),
    ))
}

async fn on_destination(
    journal: &Journal,
    mut story: Story,
    answer: Answer,
) -> Result<Resolved, MigrateError> {
    if matches!(
        answer,
        Answer::DestinationDiscarded(_) | Answer::DestinationRuns(_)
    ) {
        return Err(refused(
            "receipts are for the source; this node was the destination",
        ));
    }
    match story.standing() {
        Standing::Running | Standing::Discarded => {
            must_fit(&story, &answer)?;
            return finish(journal, story).await;
        }
        Standing::BeforeCommit | Standing::CommitReceived | Standing::CommitSent => {}
    }
    let seen = look(&story).await.map_err(refused)?;
    let committed = story.standing() == Standing::CommitReceived;
    let record = match (committed, seen.facts.runs_here()) {
        (true, true) => {
            // The monitor has room for one client, and the clean-up is the next.
            drop(seen);
            Record::Running
        }
        (false, true) => {
            return Err(refused(
                "the VM runs here, though COMMIT never came: somebody resumed it. Find out whether it also runs on the source, \
                 and end one of the two QEMUs",
            ));
        }
        (_, false) => match stopped(&story, seen, &answer, committed).await? {
            Ok(record) => record,
            Err(told) => return Ok(told),
        },
    };
    journal.append(&record)?;
    story.records.push(record);
    finish(journal, story).await
}

/// What is decided is not decided otherwise.
fn must_fit(story: &Story, answer: &Answer) -> Result<(), MigrateError> {
    match (story.standing(), answer) {
        (Standing::Running, Answer::Discard) => Err(refused(format!(
            "the VM was given to this node: its copy is not discarded. `katamaran resolve {}` says what to run on the source",
            story.header.session
        ))),
        (Standing::Discarded, Answer::Run) => Err(refused(
            "this node's copy of the VM is gone: it can't be run",
        )),
        _ => Ok(()),
    }
}

/// The VM does not run here. What it will come to, or what the operator has to say.
async fn stopped(
    story: &Story,
    seen: Seen,
    answer: &Answer,
    committed: bool,
) -> Result<Result<Record, Resolved>, MigrateError> {
    let session = story.header.session;
    let Some(qemu) = seen.facts.qemu.clone() else {
        // It never ran, and never will.
        if !committed {
            return Ok(Ok(Record::Discarded));
        }
        return Err(refused(
            "COMMIT came, and QEMU is gone: it can't be told whether the VM ran here first. If you know that it did not, resume it on \
             the source by hand (`cont` on its QMP socket)",
        ));
    };
    let untouched = matches!(
        qemu.status,
        RunState::Inmigrate | RunState::Paused | RunState::Prelaunch | RunState::Postmigrate
    );
    let context = Context { story, seen };
    match answer {
        Answer::Run if !committed => Err(refused(
            "COMMIT never came here: the source may run the VM. Discard this copy (--discard)",
        )),
        Answer::Run if story.has(&Record::Attached) => Err(refused(
            "this node's right to write to the shared volumes ended with its katamaran: the VM is not run here. Discard this copy \
             (--discard)",
        )),
        Answer::Run => match context.carry_out(&Deed::ResumeVm).await {
            Ok(()) => Ok(Ok(Record::Running)),
            Err(why) => Err(refused(format!("the VM could not be run here: {why}"))),
        },
        Answer::Discard if untouched => match context.carry_out(&Deed::EndQemu).await {
            Ok(()) => Ok(Ok(Record::Discarded)),
            Err(why) => Err(refused(format!("QEMU could not be ended: {why}"))),
        },
        Answer::Discard => Err(refused(format!(
            "the VM may have run here (QEMU says {}): it is not discarded",
            qemu.status
        ))),
        _ => {
            let run = match committed {
                true => format!("  katamaran resolve {session} --run       it runs here\n"),
                false => String::new(),
            };
            Ok(Err(Resolved::undecided(format!(
                "the VM does not run here (QEMU says {}). Choose, and run here:\n{run}  katamaran resolve {session} --discard   this copy \
                 goes, the source resumes its own",
                qemu.status
            ))))
        }
    }
}

/// Decided: what is left goes, and the receipt is told.
async fn finish(journal: &Journal, story: Story) -> Result<Resolved, MigrateError> {
    receipts(&story)?;
    let cleaned = clean_dead(journal, story.clone(), true).await;
    receipt(&story, Some(cleaned))
}

/// What the source may believe.
fn receipt(story: &Story, cleaned: Option<Cleaned>) -> Result<Resolved, MigrateError> {
    let session = story.header.session;
    let receipts = receipts(story)?.clone();
    let (fact, flag, code) = match story.standing() {
        Standing::Running => ("the VM runs here", "--destination-runs", receipts.runs),
        Standing::Discarded => (
            "this node's copy of the VM is gone",
            "--destination-discarded",
            receipts.discarded,
        ),
        Standing::BeforeCommit | Standing::CommitSent | Standing::CommitReceived => {
            return Err(refused(
                "COMMIT came, and QEMU went before it could be seen whether the VM ran here: if you know that it did not, resume it \
                 on the source by hand (`cont` on its QMP socket)",
            ));
        }
    };
    Ok(Resolved::settled(
        format!(
            "{fact}. If the source says undecided, run there:\n  katamaran resolve {session} {flag} {code}"
        ),
        cleaned,
    ))
}

fn receipts(story: &Story) -> Result<&Receipts, MigrateError> {
    story.header.receipts.as_ref().ok_or_else(|| {
        refused(
            "the other node's katamaran knows no receipts: ask both QEMUs (`query-status`) and end the copy that does not run",
        )
    })
}
