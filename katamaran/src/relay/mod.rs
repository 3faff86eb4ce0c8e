//! Carries QEMU's streams between the nodes, through the destination's one port.
//!
//! ```text
//! source node                                       destination node
//! QEMU -> unix socket -> SourceRelay ==TCP==> DestinationRelay -> unix socket -> QEMU (incoming)
//!                        ^ Governor
//! QEMU (handed a socket)             ==TCP==> DestinationRelay -> unix socket -> QEMU's NBD server
//! ```
//!
//! RAM: QEMU opens as many streams as it wants. Drives: QEMU is handed one for each ([`HandedStreams`]).
//!
//! The [`Governor`] decides how fast bytes leave QEMU: with back-pressure QEMU cannot converge by
//! itself, and the moment of the switch-over stays ours. What a relay holds back is at most one
//! chunk per stream besides the sockets' own buffers.
//!
//! What holds for users:
//! - Streams keep the order in which QEMU opened them: an incoming QEMU before 8.0 takes the first
//!   one for its main channel.
//! - A half-closed stream is half-closed onwards; the other direction goes on.
//! - A stream that fails is cut on both sides, at once, and the first failure stays visible.

mod connector;
mod destination;
mod error;
mod governor;
mod handed;
mod pump;
mod silence;
mod socket;
mod source;
mod splice;
mod status;
mod tasks;

#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod tests;

pub use connector::{Connector, connector};
pub use destination::{Carries, DestinationRelay};
pub use error::{Direction, RelayError};
pub use governor::{Governor, Pace};
pub use handed::HandedStreams;
pub use source::SourceRelay;
pub use status::{RelayCounters, RelayStatus};
