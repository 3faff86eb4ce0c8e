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
use super::found::Cleaned;
use super::look::look;
use super::settle::{self, Answer, DestinationStep, SourceStep};
use super::{clean_dead, open_way};
use crate::journal::{self, DIRECTORY, Found, Journal, Record, Standing, Story, adopt};
use crate::migrate::diary::Diary;
use crate::migrate::error::MigrateError;
use crate::migrate::node::refused;
use crate::net::NetNs;
use crate::qmp::command::RunState;
use crate::role::Role;
use crate::session_id::SessionId;

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
            settle::is_decided(&story, &answer).map_err(refused)?;
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
    let (record, text) = match settle::of_source(&story, &answer).map_err(refused)? {
        SourceStep::Decided => {
            return Ok(Resolved::settled(
                format!(
                    "session {session} is not undecided: `katamaran cleanup` looks after what it left"
                ),
                None,
            ));
        }
        SourceStep::Ask => {
            return Ok(Resolved::undecided(format!(
                "COMMIT was sent to {} and never answered; the VM stays stopped here.\nOn the destination run: katamaran resolve \
                 {session}\nIt says what to run here.",
                story.header.peer
            )));
        }
        SourceStep::Believe(record, text) => (record, text),
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
    if settle::is_decided(&story, &answer).map_err(refused)? {
        return finish(journal, story).await;
    }
    let seen = look(&story).await.map_err(refused)?;
    let record = match settle::of_destination(&story, &seen.facts, &answer).map_err(refused)? {
        // The monitor has room for one client, and the clean-up is the next.
        DestinationStep::Note(record) => {
            drop(seen);
            record
        }
        DestinationStep::Do(deed, record) => {
            let context = Context {
                story: &story,
                diary: Diary::of(journal.clone()),
                seen,
            };
            let done = context.carry_out(&deed).await;
            done.map_err(|why| refused(format!("{deed}: {why}")))?;
            record
        }
        DestinationStep::Choose { status, run } => {
            return Ok(Resolved::undecided(choice(&story, &status, run)));
        }
    };
    journal.append(&record)?;
    story.records.push(record);
    finish(journal, story).await
}

fn choice(story: &Story, status: &RunState, run: bool) -> String {
    let session = story.header.session;
    let run = match run {
        true => format!("  katamaran resolve {session} --run       it runs here\n"),
        false => String::new(),
    };
    format!(
        "the VM does not run here (QEMU says {status}). Choose, and run here:\n{run}  katamaran resolve {session} --discard   this copy \
         goes, the source resumes its own"
    )
}

/// Decided: the receipt is told. What is left goes, unless the VM runs here: as long as the source is not settled, its packets may
/// come through the tunnel.
async fn finish(journal: &Journal, story: Story) -> Result<Resolved, MigrateError> {
    settle::receipts(&story).map_err(refused)?;
    if story.standing() == Standing::Running
        && let Some(cleaned) = open_way(journal, &story).await
    {
        let opened = (!cleaned.steps.is_empty()).then_some(cleaned);
        let mut resolved = receipt(&story, opened)?;
        resolved.text.push_str(&format!(
            "\nUntil then its packets come through the tunnel, and are delivered here. After that, here:\n  katamaran cleanup --apply \
             --session {}",
            story.header.session
        ));
        return Ok(resolved);
    }
    let cleaned = clean_dead(journal, story.clone(), true).await;
    receipt(&story, Some(cleaned))
}

/// What the source may believe.
fn receipt(story: &Story, cleaned: Option<Cleaned>) -> Result<Resolved, MigrateError> {
    let session = story.header.session;
    let receipts = settle::receipts(story).map_err(refused)?.clone();
    let (fact, flag, code) = match story.standing() {
        Standing::Running => ("the VM runs here", "--destination-runs", receipts.runs),
        Standing::Discarded => (
            "this node's copy of the VM is gone",
            "--destination-discarded",
            receipts.discarded,
        ),
        Standing::BeforeCommit | Standing::CommitSent | Standing::CommitReceived => {
            return Err(refused(
                "this node has not decided where the VM is (see `katamaran status`)",
            ));
        }
    };
    Ok(Resolved::settled(
        format!(
            "{fact}.{} If the source says undecided, run there:\n  katamaran resolve {session} {flag} {code}",
            lost_rights(story)
        ),
        cleaned,
    ))
}

/// What COMMIT may have taken from the source before the VM was given back to it.
fn lost_rights(story: &Story) -> &'static str {
    let taken = story.has(&Record::Attached) && story.has(&Record::CommitReceived);
    match taken && story.standing() == Standing::Discarded {
        true => {
            "\nCOMMIT came here, and may have taken the source's right to write to shared devices that have reservations: its VM's writes \
             would fail. Look before it goes on there (`sg_persist --in --read-keys DEVICE`), and register that node again where its \
             key is gone.\n"
        }
        false => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::aftermath::testing::story;

    #[test]
    fn a_discarded_copy_that_had_shared_volumes_at_commit_may_have_cost_the_source_its_rights() {
        let told = |records: &[Record]| {
            let story = story(Role::Destination, records);
            receipt(&story, None).unwrap().text
        };
        let all = [Record::Attached, Record::CommitReceived, Record::Discarded];
        assert!(told(&all).contains("sg_persist"), "{}", told(&all));
        assert!(told(&all).ends_with("--destination-discarded d"));
        for fewer in [&all[1..], &[Record::Attached, Record::Discarded]] {
            assert!(!told(fewer).contains("sg_persist"));
        }
    }
}
