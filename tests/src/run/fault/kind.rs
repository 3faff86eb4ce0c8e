//! What can break.

use nix::sys::signal::Signal;

use super::trail::Target;
use crate::lab::Node;
use crate::run::katamaran::Role;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// katamaran on A is killed.
    SourceKilled,
    /// katamaran on B is killed.
    DestinationKilled,
    /// V's QEMU on A is killed.
    SourceQemuKilled,
    /// The QEMU on B is killed.
    DestinationQemuKilled,
    /// B's cable is pulled: nodes and router see it.
    LinkCut,
    /// Nothing gets to B or from it any more, and nobody is told.
    LinkSilent,
    /// The path between the nodes gets slow, and loses one of twenty packets of the session and of QEMU's streams.
    LinkLossy,
    /// SIGINT to the katamaran on A.
    SourceInterrupted,
    /// SIGTERM to the katamaran on A.
    SourceTerminated,
    /// SIGINT to the katamaran on B.
    DestinationInterrupted,
    /// SIGTERM to the katamaran on B.
    DestinationTerminated,
    /// The file system of B's images is full from now on.
    DestinationFull,
    /// Every write to B's images fails.
    WritesFailOnB,
    /// Every read from A's images fails.
    ReadsFailOnA,
    /// B's QEMU stops to serve its disks.
    ExportStopped,
    /// What carries the mirrors and RAM goes silent, and the session between the nodes does not.
    PathSilent,
    /// katamaran on A stands still for some time (SIGSTOP, a host that stalls), and goes on then.
    SourceFrozen,
    /// The same on B.
    DestinationFrozen,
    /// V's QEMU on A does.
    SourceQemuFrozen,
    /// The QEMU on B does.
    DestinationQemuFrozen,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::SourceKilled,
        Self::DestinationKilled,
        Self::SourceQemuKilled,
        Self::DestinationQemuKilled,
        Self::LinkCut,
        Self::LinkSilent,
        Self::LinkLossy,
        Self::SourceInterrupted,
        Self::SourceTerminated,
        Self::DestinationInterrupted,
        Self::DestinationTerminated,
        Self::DestinationFull,
        Self::WritesFailOnB,
        Self::ReadsFailOnA,
        Self::ExportStopped,
        Self::PathSilent,
        Self::SourceFrozen,
        Self::DestinationFrozen,
        Self::SourceQemuFrozen,
        Self::DestinationQemuFrozen,
    ];

    /// Whether it is about disks.
    #[must_use]
    pub fn is_of_disks(self) -> bool {
        matches!(
            self,
            Self::DestinationFull
                | Self::WritesFailOnB
                | Self::ReadsFailOnA
                | Self::ExportStopped
                | Self::PathSilent
        )
    }

    /// The signal that it is, and to whose katamaran.
    #[must_use]
    pub fn signal(self) -> Option<(Role, Signal)> {
        match self {
            Self::SourceKilled => Some((Role::Source, Signal::SIGKILL)),
            Self::DestinationKilled => Some((Role::Dest, Signal::SIGKILL)),
            Self::SourceInterrupted => Some((Role::Source, Signal::SIGINT)),
            Self::SourceTerminated => Some((Role::Source, Signal::SIGTERM)),
            Self::DestinationInterrupted => Some((Role::Dest, Signal::SIGINT)),
            Self::DestinationTerminated => Some((Role::Dest, Signal::SIGTERM)),
            _ => None,
        }
    }

    /// Who of the two katamarans can't tell any more how it ended.
    #[must_use]
    pub fn kills(self, role: Role) -> bool {
        self.signal() == Some((role, Signal::SIGKILL))
    }

    /// Who of the two is asked to end.
    #[must_use]
    pub fn asks(self, role: Role) -> bool {
        let signal = self.signal();
        signal.is_some_and(|(to, signal)| to == role && signal != Signal::SIGKILL)
    }

    /// On which node QEMU is killed.
    #[must_use]
    pub fn kills_qemu(self) -> Option<Node> {
        match self {
            Self::SourceQemuKilled => Some(Node::A),
            Self::DestinationQemuKilled => Some(Node::B),
            _ => None,
        }
    }

    /// Who stands still.
    #[must_use]
    pub(super) fn freezes(self) -> Option<Target> {
        match self {
            Self::SourceFrozen => Some(Target::Katamaran(Role::Source)),
            Self::DestinationFrozen => Some(Target::Katamaran(Role::Dest)),
            Self::SourceQemuFrozen => Some(Target::Qemu(Node::A)),
            Self::DestinationQemuFrozen => Some(Target::Qemu(Node::B)),
            _ => None,
        }
    }

    /// Whether hosts, QEMUs and links stay up, so that not one of V's packets may be lost.
    #[must_use]
    pub fn costs_no_packet(self) -> bool {
        self.is_gentle()
            || matches!(
                self,
                Self::SourceKilled
                    | Self::DestinationKilled
                    | Self::SourceFrozen
                    | Self::DestinationFrozen
            )
    }

    /// Whether nothing is killed, cut or stopped: who is asked to end does so by itself.
    #[must_use]
    pub fn is_gentle(self) -> bool {
        self == Self::LinkLossy || self.asks(Role::Source) || self.asks(Role::Dest)
    }
}
