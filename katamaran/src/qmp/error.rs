//! What can go wrong with a QMP connection and with one command on it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::open_enum::open_enum;

open_enum! {
    /// QEMU's class of an error reply. Almost everything is `GenericError`.
    pub enum ErrorClass {
        Generic = "GenericError",
        CommandNotFound = "CommandNotFound",
        DeviceNotActive = "DeviceNotActive",
        DeviceNotFound = "DeviceNotFound",
        KvmMissingCap = "KVMMissingCap",
    }
}

/// A QMP call or connection failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The monitor's socket could not be connected.
    #[error("connect to QMP socket {}", path.display())]
    Connect { path: PathBuf, source: io::Error },

    /// The socket accepts no connection: its backlog is full of waiting clients.
    #[error("QMP socket {} did not accept within {within:?}", path.display())]
    ConnectDeadline { path: PathBuf, within: Duration },

    /// The peer said something, and it was no QMP greeting.
    #[error("not a QMP monitor: it opened with {start}")]
    NotQmp { start: String },

    /// The peer accepted and stayed silent.
    #[error(
        "no QMP greeting within {within:?}: another client holds the monitor, QEMU hangs, or this is no QMP socket"
    )]
    NoGreeting { within: Duration },

    /// The connection has ended; the source says why.
    #[error("QMP connection closed")]
    Closed { source: Arc<CloseReason> },

    /// QEMU did not answer in time. The command may still take effect.
    #[error("no reply to QMP {command} within {within:?}")]
    Deadline {
        command: &'static str,
        within: Duration,
    },

    /// QEMU refused the command.
    #[error("QMP {command}: {desc} ({class})")]
    Refused {
        command: &'static str,
        class: ErrorClass,
        desc: String,
    },

    /// The reply does not have the shape that the command promises.
    #[error("QMP {command}: reply of an unexpected shape")]
    BadReply {
        command: &'static str,
        source: serde_json::Error,
    },

    /// The command's arguments have no JSON form.
    #[error("QMP {command}: arguments cannot be written as JSON")]
    BadArguments {
        command: &'static str,
        source: serde_json::Error,
    },

    /// The awaited event did not come in time.
    #[error("awaited QMP event did not come within {within:?}")]
    EventDeadline { within: Duration },
}

impl QmpError {
    /// A deadline passed: the peer may be slow, dead or served by somebody else.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ConnectDeadline { .. }
                | Self::NoGreeting { .. }
                | Self::Deadline { .. }
                | Self::EventDeadline { .. }
        )
    }

    /// The connection has ended; no later call on it can succeed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// This QEMU does not have the command.
    #[must_use]
    pub fn is_unknown_command(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                class: ErrorClass::CommandNotFound,
                ..
            }
        )
    }

    /// QEMU answered, and the answer is no.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// Why a QMP connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// QEMU closed it: it quit, crashed, or was killed.
    #[error("QEMU closed the connection")]
    Eof,

    /// Reading failed.
    #[error("read from QEMU")]
    Read(#[source] io::Error),

    /// Writing failed, or QEMU has stopped reading.
    #[error("write to QEMU")]
    Write(#[source] io::Error),

    /// A line longer than any message of QEMU.
    #[error("line longer than {limit} bytes, it starts with {start}")]
    LineTooLong { limit: usize, start: String },

    /// A line that is no QMP message.
    #[error("not a QMP message: {start}")]
    Garbage {
        start: String,
        source: serde_json::Error,
    },

    /// Well-formed JSON that is neither an event nor a reply to one of our commands.
    #[error("neither an event nor a reply with an id: {start}")]
    Unexpected { start: String },

    /// The last handle on this side was dropped.
    #[error("the connection was given up on this side")]
    Dropped,
}
