//! What an operator's answer comes to: pure functions of a journal, of what is found on the node, and of the answer.

use super::decide::{Deed, Facts};
use crate::journal::{Receipts, Record, Standing, Story};
use crate::qmp::command::RunState;

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

/// What the source does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SourceStep {
    /// It knows where its VM is.
    Decided,
    /// Only the destination can tell.
    Ask,
    /// The receipt says so: it is written down, and with what it says for the operator all that is left goes.
    Believe(Record, &'static str),
}

/// What a destination does that has not decided yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum DestinationStep {
    /// It is so.
    Note(Record),
    /// It becomes so, and is written down when it is.
    Do(Deed, Record),
    /// The operator has to choose: discard it, or (where that is safe) run it.
    Choose { status: RunState, run: bool },
}

/// # Errors
/// Why nothing is changed.
pub(super) fn of_source(story: &Story, answer: &Answer) -> Result<SourceStep, String> {
    let session = story.header.session;
    if story.standing() != Standing::CommitSent {
        return Ok(SourceStep::Decided);
    }
    let receipts = receipts(story)?;
    match answer {
        Answer::Nothing => Ok(SourceStep::Ask),
        Answer::Discard | Answer::Run => {
            Err("--discard and --run are for the destination; this node was the source".to_owned())
        }
        Answer::DestinationDiscarded(code) if *code == receipts.discarded => {
            Ok(SourceStep::Believe(
                Record::CommitHadNoEffect,
                "the destination's copy is gone: the VM is the source's again",
            ))
        }
        Answer::DestinationRuns(code) if *code == receipts.runs => Ok(SourceStep::Believe(
            Record::Running,
            "the VM runs on the destination: the copy here is given up",
        )),
        Answer::DestinationDiscarded(_) | Answer::DestinationRuns(_) => Err(format!(
            "this is not the receipt for that: nothing is changed. On the destination run: katamaran resolve {session}"
        )),
    }
}

/// Whether a destination has decided; then what is decided is not decided otherwise.
///
/// # Errors
/// The answer asks for that, or is for the source.
pub(super) fn is_decided(story: &Story, answer: &Answer) -> Result<bool, String> {
    match (story.standing(), answer) {
        (_, Answer::DestinationDiscarded(_) | Answer::DestinationRuns(_)) => {
            Err("receipts are for the source; this node was the destination".to_owned())
        }
        (Standing::Running, Answer::Discard) => Err(format!(
            "the VM was given to this node: its copy is not discarded. `katamaran resolve {}` says what to run on the source",
            story.header.session
        )),
        (Standing::Discarded, Answer::Run) => {
            Err("this node's copy of the VM is gone: it can't be run".to_owned())
        }
        (Standing::Running | Standing::Discarded, _) => Ok(true),
        (Standing::BeforeCommit | Standing::CommitSent | Standing::CommitReceived, _) => Ok(false),
    }
}

/// # Errors
/// Why nothing is changed.
pub(super) fn of_destination(
    story: &Story,
    facts: &Facts,
    answer: &Answer,
) -> Result<DestinationStep, String> {
    let committed = story.standing() == Standing::CommitReceived;
    match (committed, facts.runs_here()) {
        (true, true) => Ok(DestinationStep::Note(Record::Running)),
        (false, true) => Err(
            "the VM runs here, though COMMIT never came: somebody resumed it. Find out whether it also runs on the source, \
             and end one of the two QEMUs"
                .to_owned(),
        ),
        (_, false) => stopped(story, facts, answer, committed),
    }
}

/// The VM does not run on the destination.
fn stopped(
    story: &Story,
    facts: &Facts,
    answer: &Answer,
    committed: bool,
) -> Result<DestinationStep, String> {
    let Some(qemu) = &facts.qemu else {
        // It never ran, and never will.
        if !committed {
            return Ok(DestinationStep::Note(Record::Discarded));
        }
        // Whatever it did here, it does no more.
        if *answer == Answer::Discard {
            return Ok(DestinationStep::Note(Record::Discarded));
        }
        let session = story.header.session;
        return Err(format!(
            "COMMIT came, and QEMU is gone: it can't be told whether the VM ran here first. `katamaran resolve {session} --discard` gives \
             it back to the source, where it goes on as it was when it was stopped: what it did here since, if anything, is lost"
        ));
    };
    let untouched = matches!(
        qemu.status,
        RunState::Inmigrate | RunState::Paused | RunState::Prelaunch | RunState::Postmigrate
    );
    match answer {
        Answer::Run if !committed => Err(
            "COMMIT never came here: the source may run the VM. Discard this copy (--discard)"
                .to_owned(),
        ),
        Answer::Run if story.has(&Record::Attached) => Err(
            "this node's right to write to the shared volumes ended with its katamaran: the VM is not run here. Discard this copy \
             (--discard)"
                .to_owned(),
        ),
        Answer::Run => Ok(DestinationStep::Do(Deed::ResumeVm, Record::Running)),
        Answer::Discard if untouched => Ok(DestinationStep::Do(Deed::EndQemu, Record::Discarded)),
        Answer::Discard => Err(format!(
            "the VM may have run here (QEMU says {}): it is not discarded",
            qemu.status
        )),
        _ => Ok(DestinationStep::Choose {
            status: qemu.status.clone(),
            run: committed,
        }),
    }
}

/// # Errors
/// There are none: the other node's katamaran is older than receipts.
pub(super) fn receipts(story: &Story) -> Result<&Receipts, String> {
    story.header.receipts.as_ref().ok_or_else(|| {
        "the other node's katamaran knows no receipts: ask both QEMUs (`query-status`) and end the copy that does not run"
            .to_owned()
    })
}
