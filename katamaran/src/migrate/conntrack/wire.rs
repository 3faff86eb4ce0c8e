//! What the nodes say to each other about connections.

use serde::{Deserialize, Serialize};

use crate::conntrack::{Entry, Flow};

/// Most entries in one request: some 100 KiB, and about a millisecond of the destination's time.
pub(crate) const BATCH: usize = 128;
/// Most flows that are gone in one request.
pub(crate) const GONE_BATCH: usize = 1024;

/// Most connections of one VM that are carried: the table of a usual node has room for four times as many.
pub(crate) const MOST: usize = 65_536;

/// Changes for the destination's table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackBatch {
    /// To add; before COMMIT also to bring up to date.
    pub entries: Vec<Entry>,
    /// No longer at the source: to remove, where the destination added them for this migration.
    pub gone: Vec<Flow>,
}

/// The destination's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConntrackAnswer {
    /// What became of each entry, in their order.
    Done(Vec<Fate>),
    /// It can't add any entry.
    Unavailable(String),
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Added.
    New,
    /// Added without its helper, which that kernel does not have.
    WithoutHelper,
    /// It was there, with the same translation, and is up to date now.
    Updated,
    /// It was there, with the same translation.
    Kept,
    /// Not added: that kernel tracks no connections, and this one is not translated.
    Needless,
    /// Not added, and why.
    Refused(String),
}
