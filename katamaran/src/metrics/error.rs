//! What can be wrong with where metrics are to go.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decode::Corrupt;

/// Metrics can't be served or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("listen on {address} (--metrics-listen)")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{doing} {} (--metrics-file)", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} (--metrics-file) can't be added to, and what it counts is not thrown away; move it elsewhere to start anew",
        path.display()
    )]
    Corrupt { path: PathBuf, source: Corrupt },
    #[error(
        "{} (--metrics-file) was locked by another katamaran for {} s; is one stopped?",
        path.display(), within.as_secs()
    )]
    Busy { path: PathBuf, within: Duration },
    #[error(
        "{} (--metrics-file): its file system has not answered for {} s",
        path.display(), within.as_secs()
    )]
    Hung { path: PathBuf, within: Duration },
    #[error("the task that writes --metrics-file ended early")]
    WriterGone,
}

impl MetricsError {
    pub(super) fn file(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}
