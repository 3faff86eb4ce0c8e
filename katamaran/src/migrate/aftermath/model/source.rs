//! The source's steps, with what the code decides decided by the code.

use super::Bug;
use super::world::{Ask, Note, Step, Tell, Vm, World};
use crate::control::{ControlError, Fault, FaultCode};
use crate::migrate::message::{Reply, Resumed};
use crate::migrate::source::commit::{Fate, fate};
use crate::migrate::source::finish::Running;

/// One step that waits for nothing.
pub(super) fn advance(world: &mut World, bug: Option<Bug>) -> bool {
    let Some(step) = world.source.step else {
        return false;
    };
    let next = match step {
        Step::AskIncoming => asked(world, Ask::Incoming, Step::AwaitIncoming),
        Step::Migrate => {
            world.source.note(Note::Migrating);
            asked(world, Ask::Block, Step::AwaitBlock)
        }
        Step::Stop => {
            world.source.note(Note::Stopping);
            if world.source.vm == Vm::Running {
                world.source.vm = Vm::Stopped;
            }
            Step::AwaitLoaded
        }
        Step::NoteCommit => {
            if bug != Some(Bug::CommitIsNotWrittenDown) {
                world.source.note(Note::CommitSent);
                world.commit_noted = true;
            }
            Step::SendCommit
        }
        Step::SendCommit => match world.source.session {
            true => asked(world, Ask::Commit, Step::AwaitFate),
            false => {
                let source = Box::new(ControlError::Closed);
                return committed(world, Err(ControlError::NotSent { source }), bug);
            }
        },
        Step::AskAbort => asked(world, Ask::Abort, Step::AwaitAborted),
        Step::Resume => {
            if matches!(world.source.vm, Vm::Stopped | Vm::Finishing | Vm::Sent) {
                world.source.vm = Vm::Running;
            }
            world.source.note(Note::Resumed);
            // All is undone.
            world.source.journal = None;
            return leave(world);
        }
        Step::EndVm => {
            world.ended_running |= world.source.vm == Vm::Running;
            world.source.vm = Vm::Gone;
            world.source.journal = None;
            Step::Finish
        }
        Step::Finish => {
            world.ask(Ask::Finish);
            return leave(world);
        }
        Step::AwaitLoaded if world.loaded => Step::NoteCommit,
        Step::AwaitIncoming
        | Step::AwaitBlock
        | Step::AwaitLoaded
        | Step::AwaitFate
        | Step::AwaitAborted => return false,
    };
    world.source.step = Some(next);
    true
}

/// The next message.
pub(super) fn receive(world: &mut World, bug: Option<Bug>) -> bool {
    let Some(step) = world.source.step else {
        return false;
    };
    if !world.source.session || world.to_source.is_empty() {
        return false;
    }
    let tell = world.to_source.remove(0);
    let next = match (step, tell) {
        (Step::AwaitIncoming, Tell::Done(Ask::Incoming)) => Step::Migrate,
        (Step::AwaitBlock, Tell::Done(Ask::Block)) => Step::Stop,
        (step, Tell::Loaded) => {
            world.loaded = true;
            step
        }
        (Step::AwaitFate, Tell::Done(Ask::Commit)) => {
            let resumed = Resumed {
                resumed_at_us: 0,
                released_at_us: 0,
                held: None,
            };
            return committed(world, Ok(Reply::Committed(resumed)), bug);
        }
        (Step::AwaitFate, Tell::WrongState(Ask::Commit)) => {
            return committed(world, fault(FaultCode::WrongState), bug);
        }
        (Step::AwaitFate, Tell::Failed(Ask::Commit)) => {
            return committed(world, fault(FaultCode::Failed), bug);
        }
        (Step::AwaitAborted, Tell::Done(Ask::Abort) | Tell::WrongState(Ask::Abort)) => Step::Resume,
        (step, Tell::WrongState(_) | Tell::Failed(_)) if step.may_abort() => Step::AskAbort,
        // An answer that nobody waits for any more.
        (step, _) => step,
    };
    world.source.step = Some(next);
    true
}

/// The session is over, or a deadline, or somebody wants it to end.
pub(super) fn give_up(world: &mut World, bug: Option<Bug>) -> bool {
    match world.source.step {
        Some(step) if step.may_abort() => world.source.step = Some(Step::AskAbort),
        Some(Step::AwaitAborted) => world.source.step = Some(Step::Resume),
        Some(Step::AwaitFate) => {
            let error = match world.source.session {
                true => ControlError::Deadline {
                    within: crate::deadline::COMMIT,
                },
                false => ControlError::Closed,
            };
            return committed(world, Err(error), bug);
        }
        _ => return false,
    }
    true
}

fn asked(world: &mut World, ask: Ask, then: Step) -> Step {
    match (world.ask(ask), ask) {
        (true, _) => then,
        (false, Ask::Abort) => Step::Resume,
        (false, _) => Step::AskAbort,
    }
}

fn fault(code: FaultCode) -> Result<Reply, ControlError> {
    Err(ControlError::Fault {
        source: Fault::new(code, "no"),
    })
}

fn committed(world: &mut World, answer: Result<Reply, ControlError>, bug: Option<Bug>) -> bool {
    match fate(answer) {
        Fate::Committed(Running::Yes(_)) => {
            world.source.note(Note::Running);
            world.source.step = Some(Step::EndVm);
        }
        Fate::Committed(Running::Unknown(_)) if bug == Some(Bug::SourceResumesWhenInDoubt) => {
            world.source.step = Some(Step::AskAbort);
        }
        // Undecided: the journal stays, and the VM stopped.
        Fate::Committed(Running::Unknown(_)) => return leave(world),
        Fate::NoEffect(_) => {
            world.source.note(Note::CommitHadNoEffect);
            world.source.step = Some(Step::AskAbort);
        }
    }
    true
}

fn leave(world: &mut World) -> bool {
    world.source.step = None;
    world.source_loses_session();
    true
}
