//! What can go wrong with a journal.

use std::io;
use std::path::PathBuf;

use super::record::SCHEMA;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file system says no.
    #[error("{operation} {}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A whole line that is none of ours.
    #[error("read {}, line {line}: written by another version of katamaran, or by somebody else", .path.display())]
    Record {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Nothing says whose it is.
    #[error("read {}: it does not begin with a session", .path.display())]
    NoHeader {
        /// The journal.
        path: PathBuf,
    },
    /// Records that mean something else.
    #[error("read {}: its schema is {found}, this katamaran reads {SCHEMA}; use the version that wrote it", .path.display())]
    Schema {
        /// The journal.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
}
