//! Speaks QMP, the protocol of QEMU's monitor.
//!
//! One connection, one reader: replies are matched by id, never by order, and each event goes to
//! every [`EventStream`] that was there when it arrived.
//!
//! ```text
//! QEMU -> {"QMP": {"version": .., "capabilities": [..]}}      greeting
//!      <- {"execute": "qmp_capabilities", "id": 1}
//!      -> {"return": {}, "id": 1}
//!      <- {"execute": "stop", "id": 2}
//!      -> {"event": "STOP", "timestamp": {..}}                 events at any time
//!      -> {"return": {}, "id": 2}
//! ```
//!
//! What holds for users:
//! - An event that QEMU sent before a reply is in every stream before that reply is returned.
//! - Unknown events, fields and enum values of other QEMU releases are kept or skipped, never errors.
//! - Dropping a call's future forgets its reply and disturbs nothing else. The command may still
//!   take effect, as it may when its deadline has passed.
//! - When the connection ends, every call and stream fails with [`QmpError::Closed`] and the reason.
//!
//! QEMU serves one client per monitor socket at a time; a second one connects and hears nothing.

mod client;
pub mod command;
mod error;
mod event;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod line;
mod socket;
mod wire;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

pub use client::Qmp;
pub use command::Command;
pub use error::{CloseReason, ErrorClass, QmpError};
pub use event::{Event, EventName, EventStream};
pub use wire::QemuVersion;
