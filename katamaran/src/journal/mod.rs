//! The journal: what a node needs to know of a migration when the katamaran that ran it is gone.
//!
//! One file for each session and role, `/run/katamaran/SESSION-ROLE.journal`, a JSON record a line. A record is
//! written *before* what it tells of is done, so that a crash between the two leaves a record too much, never one too
//! few. The file is gone with the migration, unless something is left that somebody has to look after.
//!
//! ```text
//!   source        begun ─ phase… ─ qemu-settings ─ migrating ─ stopping ─ commit-sent ═ running
//!                                                                 └ resumed       └ commit-had-no-effect
//!   destination   begun ─ phase… ─ ring ─ listening ─ blocked ─ commit-received ═ running
//!                                                         └──────────┴ discarded
//! ```
//!
//! **Living or dead** is told by a lock that the process holds on its file, not by its number. **/run is in memory**: a
//! journal does not outlive the node, and neither do its VMs; so nothing is synced.
//!
//! **Settled.** A destination that was left without knowing what the source knows keeps its journal under
//! `/run/katamaran/settled/`: in it is the receipt that the source may still be asked for (see [`Receipts`]). It is kept for a week.

mod error;
mod file;
mod lock;
mod process;
mod prune;
mod record;
mod story;

#[cfg(test)]
mod tests;

pub use error::JournalError;
pub use file::{Found, Journal, adopt, list, settled};
pub use process::ProcessId;
pub use prune::prune;
pub use record::{Header, Receipts, Record, SCHEMA, Tap};
pub use story::{Standing, Story};

/// Where the journals are, beside the directories of the sessions' sockets.
pub const DIRECTORY: &str = "/run/katamaran";
