//! When something breaks: the phases of a migration and the steps of its cutover.

use super::trail::Written;
use crate::run::katamaran::Role;

/// A moment, by what both katamarans have written down or logged when it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// A source has come to the destination.
    Prepare,
    /// The nodes are being set up.
    Arm,
    /// The first mirror has been started.
    MirrorStart,
    /// A good part of a disk has been copied.
    MidMirror,
    /// Every mirror is ready.
    Ready,
    /// RAM is being copied.
    Copy,
    /// The destination is told to hold packets.
    Block,
    /// The redirect has just been turned to the destination.
    Flip,
    /// V has read what was on its way: it is about to be stopped.
    Drained,
    /// V has just been stopped.
    Stopped,
    /// The destination's QEMU has all of V.
    Loaded,
    /// The source is about to send COMMIT.
    CommitSent,
    /// The destination is about to run V.
    CommitReceived,
    /// V runs on the destination.
    Released,
    /// The source waits until no packet comes any more.
    Linger,
    /// The ledgers are compared.
    Reconcile,
    /// Both clean up.
    CleanUp,
}

/// Where it is seen that a moment has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sign {
    /// A side has logged this.
    Logged(Role, &'static str),
    /// A side has begun a phase.
    Phase(Role, &'static str),
    /// A side has this record in its journal.
    Record(Role, &'static str),
    /// QEMU's own jobs tell it.
    Jobs,
}

impl Moment {
    /// All of them, in the order in which they come.
    pub const ALL: [Self; 17] = [
        Self::Prepare,
        Self::Arm,
        Self::MirrorStart,
        Self::MidMirror,
        Self::Ready,
        Self::Copy,
        Self::Block,
        Self::Flip,
        Self::Drained,
        Self::Stopped,
        Self::Loaded,
        Self::CommitSent,
        Self::CommitReceived,
        Self::Released,
        Self::Linger,
        Self::Reconcile,
        Self::CleanUp,
    ];

    /// Whether it is one of the mirrors'.
    #[must_use]
    pub fn is_of_disks(self) -> bool {
        matches!(self, Self::MirrorStart | Self::MidMirror | Self::Ready)
    }

    pub(super) fn sign(self) -> Sign {
        match self {
            Self::Prepare => Sign::Logged(Role::Dest, "a source has come"),
            Self::Arm => Sign::Phase(Role::Source, "arm"),
            Self::MirrorStart | Self::MidMirror | Self::Ready => Sign::Jobs,
            Self::Copy => Sign::Record(Role::Source, "migrating"),
            Self::Block => Sign::Record(Role::Dest, "blocked"),
            Self::Flip => Sign::Logged(Role::Source, "DEBUG flipped"),
            Self::Drained => Sign::Record(Role::Source, "stopping"),
            Self::Stopped => Sign::Logged(Role::Source, "DEBUG stopped"),
            Self::Loaded => Sign::Logged(Role::Dest, "DEBUG loaded"),
            Self::CommitSent => Sign::Record(Role::Source, "commit-sent"),
            Self::CommitReceived => Sign::Record(Role::Dest, "commit-received"),
            Self::Released => Sign::Record(Role::Dest, "running"),
            Self::Linger => Sign::Phase(Role::Source, "linger"),
            Self::Reconcile => Sign::Phase(Role::Source, "reconcile"),
            Self::CleanUp => Sign::Phase(Role::Source, "clean up"),
        }
    }

    /// The last of them that has come.
    pub(super) fn last(written: &Written) -> Option<Self> {
        let mut moments = Self::ALL.into_iter().rev();
        moments.find(|moment| written.has(moment.sign()))
    }
}
