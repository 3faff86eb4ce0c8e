//! The state of both nodes, of what is on its way between them, and of the operator.

use super::super::decide::{Facts, QemuFacts};
use super::super::testing;
use crate::journal::{Record, Story};
use crate::migrate::destination::stage::Stage;
use crate::qmp::command::RunState;
use crate::role::Role;

/// A copy of the VM, in its QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Vm {
    Running,
    /// By QEMU, which switches over.
    Finishing,
    /// By us.
    Stopped,
    /// On the source, sent.
    Sent,
    /// On the destination, awaited.
    Incoming,
    /// On the destination, there and not running.
    Loaded,
    /// The process has ended.
    Gone,
}

impl Vm {
    fn status(self) -> Option<RunState> {
        match self {
            Self::Running => Some(RunState::Running),
            Self::Finishing => Some(RunState::FinishMigrate),
            Self::Stopped | Self::Loaded => Some(RunState::Paused),
            Self::Sent => Some(RunState::Postmigrate),
            Self::Incoming => Some(RunState::Inmigrate),
            Self::Gone => None,
        }
    }
}

/// The records that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Note {
    Migrating,
    Stopping,
    Resumed,
    CommitSent,
    CommitHadNoEffect,
    Listening,
    Blocked,
    CommitReceived,
    Running,
    Discarded,
}

impl Note {
    fn record(self) -> Record {
        match self {
            Self::Migrating => Record::Migrating,
            Self::Stopping => Record::Stopping,
            Self::Resumed => Record::Resumed,
            Self::CommitSent => Record::CommitSent,
            Self::CommitHadNoEffect => Record::CommitHadNoEffect,
            Self::Listening => Record::Listening,
            Self::Blocked => Record::Blocked,
            Self::CommitReceived => Record::CommitReceived,
            Self::Running => Record::Running,
            Self::Discarded => Record::Discarded,
        }
    }

    pub(super) fn of(record: &Record) -> Self {
        match record {
            Record::CommitHadNoEffect => Self::CommitHadNoEffect,
            Record::Running => Self::Running,
            Record::Discarded => Self::Discarded,
            other => unreachable!("nothing decides {other:?}"),
        }
    }
}

/// What katamaran does on a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node<Step> {
    /// `None`: the process has ended or died.
    pub(super) step: Option<Step>,
    pub(super) vm: Vm,
    /// `None`: nothing is left of it.
    pub(super) journal: Option<Vec<Note>>,
    /// The session, as this node sees it. The other one may see its end later.
    pub(super) session: bool,
}

/// What the source does next, or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    AskIncoming,
    AwaitIncoming,
    Migrate,
    AwaitBlock,
    Stop,
    AwaitLoaded,
    NoteCommit,
    SendCommit,
    AwaitFate,
    AskAbort,
    AwaitAborted,
    Resume,
    EndVm,
    Finish,
}

impl Step {
    /// Nothing irrevocable has been done: a signal or a lost session aborts.
    pub(super) fn may_abort(self) -> bool {
        matches!(
            self,
            Self::AskIncoming
                | Self::AwaitIncoming
                | Self::Migrate
                | Self::AwaitBlock
                | Self::Stop
                | Self::AwaitLoaded
                | Self::NoteCommit
        )
    }
}

/// The destination's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Serving {
    pub(super) stage: Stage,
    /// COMMIT is written down; QEMU is to run the VM.
    pub(super) to_run: bool,
    pub(super) running: bool,
    pub(super) loaded: bool,
}

/// To the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ask {
    Incoming,
    Block,
    Commit,
    Abort,
    Finish,
}

/// To the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tell {
    Done(Ask),
    /// Refused at this stage.
    WrongState(Ask),
    /// It was tried.
    Failed(Ask),
    Loaded,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) source: Node<Step>,
    pub(super) dest: Node<Serving>,
    pub(super) to_dest: Vec<Ask>,
    pub(super) to_source: Vec<Tell>,
    /// The source has heard that the VM is on the destination.
    pub(super) loaded: bool,
    /// The operator has been told that the destination's copy is gone, that it runs.
    pub(super) told_discarded: bool,
    pub(super) told_runs: bool,
    /// The source has written COMMIT down, some time.
    pub(super) commit_noted: bool,
    /// A QEMU died by itself.
    pub(super) qemu_died: bool,
    /// A QEMU that ran the VM was ended by us.
    pub(super) ended_running: bool,
    /// Faults that may still come.
    pub(super) faults: u8,
}

impl World {
    /// Both nodes are armed, and the session stands.
    pub(super) fn new(faults: u8) -> Self {
        Self {
            source: Node {
                step: Some(Step::AskIncoming),
                vm: Vm::Running,
                journal: Some(Vec::new()),
                session: true,
            },
            dest: Node {
                step: Some(Serving {
                    stage: Stage::Armed,
                    to_run: false,
                    running: false,
                    loaded: false,
                }),
                vm: Vm::Incoming,
                journal: Some(Vec::new()),
                session: true,
            },
            to_dest: Vec::new(),
            to_source: Vec::new(),
            loaded: false,
            told_discarded: false,
            told_runs: false,
            commit_noted: false,
            qemu_died: false,
            ended_running: false,
            faults,
        }
    }

    pub(super) fn running(&self) -> usize {
        let vms = [self.source.vm, self.dest.vm];
        vms.iter().filter(|vm| **vm == Vm::Running).count()
    }

    /// A request, unless this node knows already that nobody would get it.
    pub(super) fn ask(&mut self, ask: Ask) -> bool {
        if self.source.session && self.dest.session {
            self.to_dest.push(ask);
        }
        self.source.session
    }

    pub(super) fn tell(&mut self, tell: Tell) {
        if self.source.session && self.dest.session {
            self.to_source.push(tell);
        }
    }

    /// The source sees the end of the session: nothing of it comes any more. What it has sent may still arrive.
    pub(super) fn source_loses_session(&mut self) {
        self.source.session = false;
        self.to_source.clear();
    }

    pub(super) fn dest_loses_session(&mut self) {
        self.dest.session = false;
        self.to_dest.clear();
    }
}

impl<S> Node<S> {
    pub(super) fn note(&mut self, note: Note) {
        if let Some(journal) = &mut self.journal {
            journal.push(note);
        }
    }

    /// What a clean-up reads.
    pub(super) fn story(&self, role: Role) -> Option<Story> {
        let notes = self.journal.as_ref()?;
        let records: Vec<Record> = notes.iter().map(|note| note.record()).collect();
        Some(testing::story(role, &records))
    }

    /// What a clean-up finds.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            qemu: self.vm.status().map(|status| QemuFacts {
                running: status == RunState::Running,
                status,
                migration: None,
                mirrors: false,
                exports: false,
            }),
            ..Facts::default()
        }
    }
}
