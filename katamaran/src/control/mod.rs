//! The session between the two nodes.
//!
//! The destination has one TCP port. Each connection to it opens with a [`Preamble`] that names
//! the session and what the connection is for. The control connection then carries frames, a
//! length and a JSON object each:
//!
//! ```text
//! source                                   destination
//!   |-- {"request": {id, body}}  ------------>|   Client::request    Requests::next
//!   |<-- {"reply": {id, body | fault}} -------|                      Server::reply
//!   |<-- {"notice": body} --------------------|   Notices::next      Server::notify
//!   |<-- {"ping": ..} / {"pong": ..} -------->|   both ways, always
//!   |<-- {"refused": fault} ------------------|   instead of all that
//! ```
//!
//! What holds for users:
//! - Replies are matched by id; several requests may be under way.
//! - A peer that is silent for the limit counts as gone, and every waiter learns it.
//! - Dropping a future that waits for a reply disturbs nothing else.
//! - The only error type on the wire is [`Fault`].

mod channel;
mod client;
mod clock;
mod dial;
mod error;
mod fault;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod listener;
mod preamble;
mod server;
mod version;

#[cfg(test)]
mod channel_tests;
#[cfg(test)]
mod listener_tests;

pub use channel::{Protocol, Timing};
pub use client::{Client, Notices};
pub use clock::ClockOffset;
pub use dial::{DialError, Dialer, Upgrade, plaintext};
pub use error::ControlError;
pub use fault::{Fault, FaultCode};
pub use frame::{FRAME_LIMIT, FrameError};
pub use listener::{Arrival, ControlConnection, Listener, Look, Stream};
pub use preamble::{PREAMBLE_VERSION, Preamble, PreambleError, StreamKind};
pub use server::{RequestId, Requests, Server};
pub use version::select;
