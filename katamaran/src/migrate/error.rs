//! Why a migration ended early. Each message says what failed; the phase, the VM's state and what
//! to do next are added where the error is reported ([`super::report`]).

use std::time::Duration;

use crate::control::{ControlError, DialError};
use crate::discover::DiscoverError;
use crate::ebpf::EbpfError;
use crate::journal::JournalError;
use crate::net::NetError;
use crate::qmp::QmpError;
use crate::relay::RelayError;
use crate::volume::VolumeError;

use super::storage::StorageError;

/// Why a migration ended early.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("QEMU: {doing}")]
    Qmp {
        doing: &'static str,
        source: Box<QmpError>,
    },
    #[error("network: {doing}")]
    Net {
        doing: &'static str,
        source: Box<NetError>,
    },
    #[error("data path: {doing}")]
    Ebpf {
        doing: &'static str,
        source: Box<EbpfError>,
    },
    #[error("session with the other node: {doing}")]
    Session {
        doing: &'static str,
        source: Box<ControlError>,
    },
    #[error("find the VM's tap")]
    Discover(#[source] Box<DiscoverError>),
    #[error("RAM relay: {doing}")]
    Relay {
        doing: &'static str,
        source: Box<RelayError>,
    },
    #[error(transparent)]
    Storage(Box<StorageError>),
    #[error("look after a shared volume")]
    Volume(#[source] Box<VolumeError>),
    #[error("{who} still has the right to write to {volume}, where it must have none")]
    StillWriting { who: &'static str, volume: String },
    #[error("connect to the destination: is `katamaran --mode dest` running there?")]
    Connect(#[source] Box<DialError>),
    #[error("make directory {}", path.display())]
    Directory {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("keep the journal")]
    Journal(#[from] JournalError),
    #[error("listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },

    #[error("{}", problems.join("\nerror: "))]
    Refused { problems: Vec<String> },
    #[error("the destination refused: {0}")]
    RefusedByPeer(String),
    #[error("the destination answered {what} with something else: the two katamarans do not fit")]
    OutOfStep { what: &'static str },
    #[error("the other node gave up: {reason}")]
    PeerGaveUp { reason: String },

    #[error("QEMU ended the migration as {status}{}", reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default())]
    MigrationEnded {
        status: String,
        reason: Option<String>,
    },
    #[error("{}", timed_out(*.after, .attached, .copy.as_ref()))]
    TimedOut {
        after: Duration,
        /// The shared volumes that both nodes had open all the time.
        attached: Vec<String>,
        /// How the RAM copy went, if it had begun.
        copy: Option<CopyRates>,
    },
    #[error("the VM has stood still for {} ms (--pause-limit) and is not complete on the destination", .limit.as_millis())]
    PauseTooLong { limit: Duration },
    #[error("{what} did not happen within {} ms", .within.as_millis())]
    Deadline {
        what: &'static str,
        within: Duration,
    },
    #[error("the VM is {0}, not running: only a running VM is migrated")]
    NotRunning(String),
    #[error(
        "somebody else stopped the VM (QEMU says {0}) while it was copied; it is left as it is"
    )]
    StoppedByOthers(String),
    #[error("interrupted")]
    Interrupted,
}

/// How far a RAM copy was from converging.
#[derive(Debug, Clone, Copy)]
pub struct CopyRates {
    pub dirty_mib: f64,
    pub path_mib: f64,
    /// The shortest pause that was possible.
    pub pause_ms: f64,
}

fn timed_out(after: Duration, attached: &[String], copy: Option<&CopyRates>) -> String {
    let mut text = format!("--migration-timeout: {} s are over", after.as_secs());
    if !attached.is_empty() {
        text.push_str(&format!(
            ", and so long both nodes had {} open",
            attached.join(", ")
        ));
    }
    if let Some(CopyRates {
        dirty_mib,
        path_mib,
        pause_ms,
    }) = copy
    {
        text.push_str(&format!(
            "; the RAM did not converge: the guest dirties {dirty_mib:.0} MiB/s, the path carries {path_mib:.0} MiB/s, the \
             shortest pause would be {pause_ms:.0} ms"
        ));
    }
    text.push_str(
        "; allow more time (up to 3600 s), raise --downtime, raise or drop --max-bandwidth, pass --auto-converge, or \
         retry when it is calmer",
    );
    text
}

impl MigrateError {
    /// The time that the user allows was over.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::PauseTooLong { .. } => true,
            Self::Storage(error) => error.is_timeout(),
            _ => false,
        }
    }
}

impl From<DiscoverError> for MigrateError {
    fn from(source: DiscoverError) -> Self {
        Self::Discover(Box::new(source))
    }
}

impl From<StorageError> for MigrateError {
    fn from(error: StorageError) -> Self {
        Self::Storage(Box::new(error))
    }
}

/// The whole chain, outermost first, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Adds what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, MigrateError>;
}

impl<T> Doing<T> for Result<T, QmpError> {
    fn doing(self, doing: &'static str) -> Result<T, MigrateError> {
        self.map_err(Box::new)
            .map_err(|source| MigrateError::Qmp { doing, source })
    }
}

impl<T> Doing<T> for Result<T, NetError> {
    fn doing(self, doing: &'static str) -> Result<T, MigrateError> {
        self.map_err(Box::new)
            .map_err(|source| MigrateError::Net { doing, source })
    }
}

impl<T> Doing<T> for Result<T, EbpfError> {
    fn doing(self, doing: &'static str) -> Result<T, MigrateError> {
        self.map_err(Box::new)
            .map_err(|source| MigrateError::Ebpf { doing, source })
    }
}

impl<T> Doing<T> for Result<T, ControlError> {
    fn doing(self, doing: &'static str) -> Result<T, MigrateError> {
        self.map_err(Box::new)
            .map_err(|source| MigrateError::Session { doing, source })
    }
}

impl<T> Doing<T> for Result<T, RelayError> {
    fn doing(self, doing: &'static str) -> Result<T, MigrateError> {
        self.map_err(Box::new)
            .map_err(|source| MigrateError::Relay { doing, source })
    }
}
