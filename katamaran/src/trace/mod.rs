//! `katamaran trace`: which packets of a VM the kernel drops, where, and why.
//!
//! A program at the kernel's own tracepoint for dropped packets (`skb:kfree_skb`) tells of each one that is
//! to or from the VM, in any network namespace, also inside of a tunnel. Beside it the counters of migrations'
//! hooks are shown as they change. Nothing is changed and nothing left behind: it can run on any node, with
//! or without a migration, several times at once.
//!
//! The totals are kept in the kernel: they are right, too, when drops come faster than they can be told, and
//! how many were not told is said.

mod error;
mod hooks;
mod hop;
mod packet;
mod places;
mod reasons;
pub mod record;
mod run;
mod text;
mod wall_clock;

pub use error::TraceError;
pub use hop::Hop;
pub use run::run;
