//! The destination's steps, with what the code decides decided by the code.

use super::world::{Ask, Note, Serving, Tell, Vm, World};
use crate::migrate::destination::stage::{Facts, Stage, next};
use crate::migrate::ledger::Verdict;
use crate::migrate::message::{Request, Summary};

fn request(ask: Ask) -> Request {
    match ask {
        Ask::Incoming => Request::Incoming {
            multifd_channels: 0,
        },
        Ask::Block => Request::Block,
        Ask::Commit => Request::Commit,
        Ask::Abort => Request::Abort {
            reason: String::new(),
            nic: 0,
        },
        Ask::Finish => Request::Finish {
            summary: Summary {
                verdict: Verdict::Unproven,
                ledger: None,
                unproven: Vec::new(),
            },
        },
    }
}

/// The next message. While QEMU is being told to run the VM none is read.
pub(super) fn receive(world: &mut World) -> bool {
    let Some(serving) = world.dest.step else {
        return false;
    };
    if !world.dest.session || serving.to_run || world.to_dest.is_empty() {
        return false;
    }
    let ask = world.to_dest.remove(0);
    let facts = Facts {
        loaded: serving.loaded,
        gone: world.dest.vm == Vm::Gone,
        ..Facts::default()
    };
    let Ok(stage) = next(serving.stage, &request(ask), facts) else {
        world.tell(Tell::WrongState(ask));
        return true;
    };
    let mut serving = Serving { stage, ..serving };
    match ask {
        Ask::Incoming => world.dest.note(Note::Listening),
        Ask::Block => world.dest.note(Note::Blocked),
        Ask::Commit => {
            world.dest.note(Note::CommitReceived);
            serving.to_run = true;
        }
        Ask::Abort => destroy(world),
        Ask::Finish => {}
    }
    world.dest.step = Some(serving);
    if ask != Ask::Commit {
        world.tell(Tell::Done(ask));
    }
    true
}

/// QEMU is told to run the VM, and does or does not.
pub(super) fn run(world: &mut World, works: bool) -> bool {
    let Some(serving) = world.dest.step.filter(|serving| serving.to_run) else {
        return false;
    };
    let works = works && world.dest.vm == Vm::Loaded;
    if works {
        world.dest.vm = Vm::Running;
        world.dest.note(Note::Running);
    }
    world.dest.step = Some(Serving {
        to_run: false,
        running: works,
        ..serving
    });
    world.tell(match works {
        true => Tell::Done(Ask::Commit),
        false => Tell::Failed(Ask::Commit),
    });
    true
}

/// The session is over, and what came of it has been read.
pub(super) fn end(world: &mut World) -> bool {
    let Some(serving) = world.dest.step.filter(|serving| !serving.to_run) else {
        return false;
    };
    match (serving.stage, serving.running) {
        // Undecided: the journal stays.
        (Stage::Committed | Stage::Finished, false) => {}
        (Stage::Finished, true) => world.dest.journal = None,
        // The source may not know; the journal is kept for that.
        (Stage::Committed, true) => {}
        (Stage::Blocked, _) => {
            destroy(world);
            world.dest.note(Note::Discarded);
            world.told_discarded = true;
        }
        _ => {
            destroy(world);
            world.dest.journal = None;
        }
    }
    world.dest.step = None;
    world.dest_loses_session();
    true
}

fn destroy(world: &mut World) {
    world.ended_running |= world.dest.vm == Vm::Running;
    world.dest.vm = Vm::Gone;
}
