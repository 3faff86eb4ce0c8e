//! What is written down.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::process::ProcessId;
use crate::role::Role;
use crate::session_id::SessionId;

/// The version of these records that this build writes, and the only one that it reads.
pub const SCHEMA: u32 = 1;

/// The first record of each journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of the program that wrote it.
    pub software: String,
    /// The migration.
    pub session: SessionId,
    /// Which end.
    pub role: Role,
    /// Of katamaran.
    pub pid: u32,
    /// QEMU's monitor, as an absolute path.
    pub qmp: PathBuf,
    /// QEMU itself, where it could be told: what is done to a QEMU is done to this one only.
    pub qemu: Option<ProcessId>,
    /// The other node.
    pub peer: String,
    /// Addresses of the VM.
    pub vm: Vec<IpAddr>,
    /// The tap of the VM's first network card.
    pub tap: Tap,
    /// Those of the others, in the source's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_taps: Vec<Tap>,
    /// Number of the network namespace that katamaran ran in.
    pub netns: u64,
    /// What becomes of the source's QEMU once the VM runs on the destination.
    pub ends_qemu: bool,
    /// Absent when the other node has never heard of receipts.
    pub receipts: Option<Receipts>,
    /// How long to wait, in seconds, for the network to send the VM's packets to the destination (`--cni-convergence-delay`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convergence_s: Option<u64>,
}

impl Header {
    /// The taps of all network cards.
    pub fn taps(&self) -> impl Iterator<Item = &Tap> {
        std::iter::once(&self.tap).chain(&self.more_taps)
    }

    /// The ids by which the cards go in names of kernel objects.
    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        (0..=self.more_taps.len()).map(|nic| self.session.of_nic(nic))
    }
}

/// A tap, as long as it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// Number of that namespace.
    pub netns: u64,
}

/// What the destination tells an operator about its copy, for the source to believe. The source makes both up, and both nodes
/// write them down; so whoever has one has been at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    /// The copy on the destination does not exist any more, and never ran; or nobody could tell, and an operator
    /// has given it up.
    pub discarded: String,
    /// The VM runs on the destination.
    pub runs: String,
}

impl Receipts {
    /// Two fresh ones.
    #[must_use]
    pub fn random() -> Self {
        let code = || SessionId::random().to_string();
        Self {
            discarded: format!("d{}", code()),
            runs: format!("r{}", code()),
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// A migration begins.
    Begun(Box<Header>),
    /// What it is about to do.
    Phase {
        /// As in the report.
        name: String,
    },
    /// The destination looks after volumes that both nodes have open: its right to write there ends with the process.
    Attached,
    /// A tap's ring is lengthened.
    Ring {
        /// Its length until now.
        before: u32,
        /// Which of [`Header::taps`].
        #[serde(default)]
        nic: usize,
    },
    /// QEMU is set up for a migration.
    QemuSettings {
        /// Its capabilities until now, as in `migrate-set-capabilities`.
        capabilities: Value,
        /// Its parameters until now, as in `migrate-set-parameters`.
        parameters: Value,
    },
    /// The source's QEMU is told to send the VM.
    Migrating,
    /// The source's VM is told to stop.
    Stopping,
    /// The source's VM runs again.
    Resumed,
    /// The destination's QEMU is told to receive a VM.
    Listening,
    /// The destination holds packets: COMMIT may be next.
    Blocked,
    /// The source is about to send COMMIT.
    CommitSent,
    /// COMMIT did not leave the source, or an operator knows that it came to nothing.
    CommitHadNoEffect,
    /// The destination is about to run the VM.
    CommitReceived,
    /// The VM runs on the destination.
    Running,
    /// The destination's copy is gone for good.
    Discarded,
    /// The migration ended and could not remove all that was its own.
    Left {
        /// What.
        what: Vec<String>,
    },
}
