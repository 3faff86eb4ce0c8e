//! The one error type on the wire.

use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;

open_enum! {
    /// What kind of fault; a peer of another release may know more kinds.
    pub enum FaultCode {
        BadRequest = "bad-request",
        Busy = "busy",
        Cancelled = "cancelled",
        Deadline = "deadline",
        Failed = "failed",
        Incompatible = "incompatible",
        Unsupported = "unsupported",
        WrongState = "wrong-state",
    }
}

/// Why the peer did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Fault {
    /// For programs.
    pub code: FaultCode,
    /// For people; one line.
    pub message: String,
}

impl Fault {
    /// A fault with a message.
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
