//! What a mirror leaves behind: jobs and nodes in the source's QEMU, and its connections to the
//! destination.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::deadline;
use crate::migrate::error::chain;
use crate::migrate::storage::PREFIX;
use crate::qmp::command::{
    BlockJobCancel, BlockdevDel, JobDismiss, QueryBlockJobs, QueryNamedBlockNodes,
};
use crate::qmp::{Qmp, QmpError};
use crate::relay::{HandedStreams, RelayError};

/// Between two looks at jobs that are told to end.
const POLL: Duration = Duration::from_millis(10);

/// Removes a mirror. Clones remove the same one.
#[derive(Debug, Clone)]
pub(crate) struct Residue {
    qmp: Qmp,
    streams: Arc<Mutex<Option<HandedStreams>>>,
}

impl Residue {
    pub(super) fn new(qmp: Qmp, streams: HandedStreams) -> Self {
        Self {
            qmp,
            streams: Arc::new(Mutex::new(Some(streams))),
        }
    }

    /// Another connection to the destination: QEMU's end of it.
    pub(super) async fn open_stream(&self) -> Result<OwnedFd, RelayError> {
        match self.streams.lock().await.as_mut() {
            Some(streams) => streams.open().await,
            None => Err(RelayError::Cut),
        }
    }

    /// Cuts the path to the destination. Whatever in QEMU waits for an answer from there gets an error, so
    /// that neither a guest's write nor a `stop` can hang on a destination that is gone.
    pub(crate) async fn cut(&self) {
        let streams = self.streams.lock().await.take();
        if let Some(streams) = streams {
            streams.shutdown().await;
        }
    }

    /// Cuts the path, cancels every job by force, waits for their end, and removes our nodes. What is gone
    /// already is fine, also if it is QEMU.
    pub(crate) async fn remove(self) -> Result<(), String> {
        self.cut().await;
        match remove_all(&self.qmp).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_closed() => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// Removes every job and node that carries our name.
pub(crate) async fn remove_all(qmp: &Qmp) -> Result<(), QmpError> {
    let end = Instant::now() + deadline::JOB_ABORT;
    let mut last = None;
    loop {
        let jobs = qmp.execute(QueryBlockJobs).await?;
        let ours: Vec<_> = jobs
            .into_iter()
            .filter(|j| j.device.starts_with(PREFIX))
            .collect();
        for job in &ours {
            let id = job.device.clone();
            let told = if job.status.is_over() {
                qmp.execute(JobDismiss { id }).await
            } else {
                let cancel = BlockJobCancel {
                    device: id,
                    force: true,
                };
                qmp.execute(cancel).await
            };
            last = told.err().or(last);
        }
        if ours.is_empty() {
            match remove_nodes(qmp).await {
                Ok(()) => return Ok(()),
                // A node is in use for a moment after its job has ended.
                Err(error) if error.is_refused() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        if Instant::now() >= end {
            let within = deadline::JOB_ABORT;
            return Err(last.unwrap_or(QmpError::EventDeadline { within }));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn remove_nodes(qmp: &Qmp) -> Result<(), QmpError> {
    let nodes = qmp.execute(QueryNamedBlockNodes { flat: true }).await?;
    let ours = nodes
        .into_iter()
        .filter_map(|n| n.node_name)
        .filter(|name| name.starts_with(PREFIX));
    for node_name in ours {
        qmp.execute(BlockdevDel { node_name }).await?;
    }
    Ok(())
}
