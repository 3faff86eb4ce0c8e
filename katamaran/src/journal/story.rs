//! What a journal tells: pure functions of its records.

use serde::Serialize;

use super::record::{Header, Record};
use crate::role::Role;

/// A journal, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// The first record.
    pub header: Header,
    /// When it was written, microseconds since the epoch.
    pub since_us: i64,
    /// All that followed.
    pub records: Vec<Record>,
}

/// How far a migration came, by what this node has written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The VM is the source's.
    BeforeCommit,
    /// The source sent COMMIT and does not know the answer.
    CommitSent,
    /// The destination received COMMIT and has not seen the VM run.
    CommitReceived,
    /// The VM is the destination's.
    Running,
    /// The destination's copy is gone; the VM is the source's.
    Discarded,
}

impl Story {
    /// How far it came. Each record that decides something overrules those before it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let mut standing = Standing::BeforeCommit;
        for record in &self.records {
            standing = match record {
                Record::CommitSent => Standing::CommitSent,
                Record::CommitHadNoEffect => Standing::BeforeCommit,
                Record::CommitReceived => Standing::CommitReceived,
                Record::Running => Standing::Running,
                Record::Discarded => Standing::Discarded,
                Record::Begun(_)
                | Record::Phase { .. }
                | Record::Attached
                | Record::Ring { .. }
                | Record::QemuSettings { .. }
                | Record::Migrating
                | Record::Stopping
                | Record::Resumed
                | Record::Listening
                | Record::Blocked
                | Record::Left { .. } => standing,
            };
        }
        standing
    }

    /// Whether something was written down.
    #[must_use]
    pub fn has(&self, record: &Record) -> bool {
        self.records.contains(record)
    }

    /// Whether we have stopped the VM, and not let it run again since.
    #[must_use]
    pub fn has_stopped_vm(&self) -> bool {
        let mut runs_and_stops = self.records.iter().rev();
        runs_and_stops.find(|r| matches!(r, Record::Stopping | Record::Resumed))
            == Some(&Record::Stopping)
    }

    /// The last phase.
    #[must_use]
    pub fn phase(&self) -> Option<&str> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Phase { name } => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether only an operator who has looked at both nodes can say where the VM is.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        match self.header.role {
            Role::Source => self.standing() == Standing::CommitSent,
            Role::Destination => self.standing() == Standing::CommitReceived,
        }
    }

    /// Whether the source may have sent a COMMIT that this destination knows nothing of.
    #[must_use]
    pub fn source_may_ask(&self) -> bool {
        self.header.role == Role::Destination
            && self.header.receipts.is_some()
            && self.has(&Record::Blocked)
    }
}
