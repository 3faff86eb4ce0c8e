//! What can go wrong with a relay.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::deadline;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the source's QEMU to the destination's.
    ToDestination,
    /// Back: the return path.
    ToSource,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToDestination => "source to destination",
            Self::ToSource => "destination to source",
        })
    }
}

/// A relay or one of its streams failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RelayError {
    /// The socket for QEMU could not be made.
    #[error("make migration socket {}", path.display())]
    Socket {
        path: PathBuf,
        source: Arc<io::Error>,
    },

    /// The path of the socket does not fit a socket address.
    #[error("migration socket {} has a path of {length} bytes, more than {limit}", path.display())]
    PathTooLong {
        path: PathBuf,
        length: usize,
        limit: usize,
    },

    /// The socket for QEMU accepts no more.
    #[error("accept a migration stream of QEMU")]
    Accept { source: Arc<io::Error> },

    /// A stream could not be connected onwards.
    #[error("connect migration stream {stream} onwards")]
    Connect { stream: u32, source: Arc<io::Error> },

    /// A stream is for QEMU itself, which can't take it.
    #[error("migration stream {stream} is no plain TCP connection, which QEMU could be handed")]
    NotASocket { stream: u32 },

    /// A stream could not be connected onwards in time.
    #[error("migration stream {stream} not connected onwards within {within:?}")]
    ConnectDeadline { stream: u32, within: Duration },

    /// A stream arrived, but one that QEMU opened before it did not.
    #[error("migration stream {missing} missing for {within:?} while stream {stream} waits")]
    Order {
        stream: u32,
        missing: u32,
        within: Duration,
    },

    /// The relay has been shut down.
    #[error("migration streams are cut already")]
    Cut,

    /// A stream arrived twice.
    #[error("migration stream {stream} arrived twice")]
    Twice { stream: u32 },

    /// Reading from a stream failed.
    #[error("read migration stream {stream}, {direction}")]
    Read {
        stream: u32,
        direction: Direction,
        source: Arc<io::Error>,
    },

    /// Writing to a stream failed.
    #[error("write migration stream {stream}, {direction}")]
    Write {
        stream: u32,
        direction: Direction,
        source: Arc<io::Error>,
    },

    /// The other node's kernel does not answer on this stream any more.
    #[error("nothing that was sent on stream {stream} was acknowledged for {} s", .within.as_secs())]
    Silent { stream: u32, within: Duration },
}

impl RelayError {
    pub(super) fn silent(stream: u32) -> Self {
        let within = deadline::STREAM_SILENCE;
        Self::Silent { stream, within }
    }
}
