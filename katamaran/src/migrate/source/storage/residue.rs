//! What a mirror leaves behind: jobs and nodes in the source's QEMU, and its connections to the
//! destination.
//!
//! **The VM stands still while a mirror is ended before its time.** A job that ends frees its memory without regard to a write of the
//! guest that it still has under way to the destination (`mirror_run()` and `active_write_settle()`, block/mirror.c), and
//! QEMU crashes, with the VM in it: seen with 7.2 in every second abort that came as its mirrors began. `stop` has QEMU finish the guest's
//! writes first. Where it can't, because the path is dead, they are given up once `stop` has begun to wait for them; jobs
//! rest as long as it waits.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::deadline;
use crate::journal::Record;
use crate::migrate::diary::Diary;
use crate::migrate::error::chain;
use crate::migrate::storage::PREFIX;
use crate::qmp::command::{
    BlockJobCancel, BlockdevDel, Cont, JobDismiss, QueryBlockJobs, QueryNamedBlockNodes,
    QueryStatus, Stop,
};
use crate::qmp::{Qmp, QmpError};
use crate::relay::{HandedStreams, RelayError};

/// How long the guest's writes may take to reach the destination when an abort has stopped the VM.
const WRITES_END: Duration = Duration::from_millis(300);
/// Between two looks at jobs that are told to end.
const POLL: Duration = Duration::from_millis(10);

/// Removes a mirror. Clones remove the same one.
#[derive(Debug, Clone)]
pub(crate) struct Residue {
    qmp: Qmp,
    diary: Diary,
    streams: Arc<Mutex<Option<HandedStreams>>>,
}

impl Residue {
    pub(super) fn new(qmp: Qmp, streams: HandedStreams, diary: Diary) -> Self {
        Self {
            qmp,
            diary,
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
    async fn cut(&self) {
        let streams = self.streams.lock().await.take();
        if let Some(streams) = streams {
            streams.shutdown().await;
        }
    }

    /// Cuts the path, cancels every job by force, waits for their end, and removes our nodes; a VM that runs stands still
    /// meanwhile. What is gone already is fine, also if it is QEMU.
    pub(crate) async fn remove(self) -> Result<(), String> {
        if self.streams.lock().await.is_none() {
            return Ok(());
        }
        match self.remove_at_rest().await {
            Ok(()) => Ok(()),
            Err(error) if error.is_closed() => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }

    async fn remove_at_rest(&self) -> Result<(), QmpError> {
        // A QEMU that does not answer is stopping the VM already, and waits for the destination.
        let asked = self.qmp.execute_within(QueryStatus, WRITES_END).await;
        let running = asked.is_ok_and(|status| status.running);
        if running {
            self.diary.mention(&Record::Stopping);
            let stop = self.qmp.execute(Stop);
            tokio::pin!(stop);
            match tokio::time::timeout(WRITES_END, &mut stop).await {
                Ok(stopped) => stopped.map(drop)?,
                Err(_writes_wait) => {
                    self.cut().await;
                    stop.await.map(drop)?;
                }
            }
        }
        self.cut().await;
        let removed = remove_all(&self.qmp).await;
        if running {
            self.qmp.execute(Cont).await?;
            self.diary.mention(&Record::Resumed);
        }
        removed
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
