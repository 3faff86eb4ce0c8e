//! What can go wrong with a control session and with one request on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::fault::Fault;
use super::frame::FrameError;

/// A control session or a request on it failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// The peer closed the session, or its process ended.
    #[error("peer closed the control session")]
    Closed,

    /// The session was closed on this side.
    #[error("control session closed on this side")]
    ClosedHere,

    /// Nothing, not even a heartbeat, came from the peer.
    #[error("peer silent for {limit:?}")]
    PeerSilent { limit: Duration },

    /// The connection broke; the peer may still be there.
    #[error("control connection broke")]
    Broken { source: Arc<io::Error> },

    /// The peer sent what is no message of this protocol.
    #[error("peer broke the control protocol")]
    Garbled { source: Arc<FrameError> },

    /// The destination does not take the session.
    #[error("destination refused the session")]
    Refused { source: Fault },

    /// The session had ended before the request could be sent: the peer never saw it.
    #[error("request not sent")]
    NotSent { source: Box<ControlError> },

    /// The request or notice cannot be sent in one frame: the peer never saw it.
    #[error("message cannot be sent")]
    Unsendable { source: Arc<FrameError> },

    /// No reply came in time. The peer may have done what it was asked, or may do so yet.
    #[error("no reply within {within:?}")]
    Deadline { within: Duration },

    /// The peer answered, and the answer is no.
    #[error("peer refused the request")]
    Fault { source: Fault },

    /// The reply is not one of this protocol.
    #[error("reply of an unexpected shape")]
    BadReply { source: Arc<serde_json::Error> },
}

impl ControlError {
    /// Whether the peer certainly never got the request.
    #[must_use]
    pub fn never_sent(&self) -> bool {
        matches!(self, Self::NotSent { .. } | Self::Unsendable { .. })
    }

    /// Whether the session is over: nothing later on it can succeed.
    #[must_use]
    pub fn is_session_over(&self) -> bool {
        !matches!(
            self,
            Self::Unsendable { .. }
                | Self::Deadline { .. }
                | Self::Fault { .. }
                | Self::BadReply { .. }
        )
    }

    /// The peer's answer, where it gave one.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault { source } | Self::Refused { source } => Some(source),
            _ => None,
        }
    }
}
