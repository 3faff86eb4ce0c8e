//! What a mirror leaves behind: jobs and nodes in the source's QEMU, and its connections to the
//! destination.
//!
//! **The VM stands still while a mirror is ended before its time.** A job that ends frees its memory without regard to a write of the
//! guest that it still has under way to the destination (`mirror_run()` and `active_write_settle()`, block/mirror.c), and
//! QEMU crashes, with the VM in it: seen with 7.2 in every second abort that came as its mirrors began. A job that meets an error only
//! pauses ([`BlockdevMirror`](crate::qmp::command::BlockdevMirror)), so that the path can be cut first: the guest's writes then
//! succeed here and fail there, at once, and `stop`, which waits for them, can't hang on a destination that is gone.

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
    BlockJobCancel, BlockJobInfo, BlockdevDel, Cont, JobDismiss, QueryBlockJobs,
    QueryNamedBlockNodes, QueryStatus, Stop, Yank,
};
use crate::qmp::{Qmp, QmpError};
use crate::relay::{HandedStreams, RelayError};

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

    /// Cuts the path and removes the mirrors, see [`remove_all`]. What is gone already is fine, also if it is QEMU.
    pub(crate) async fn remove(self) -> Result<(), String> {
        if self.streams.lock().await.is_none() {
            return Ok(());
        }
        self.cut().await;
        match remove_all(&self.qmp, &self.diary).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_closed() => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// Removes every job and node that carries our name. A VM that runs stands still while jobs are ended.
pub(crate) async fn remove_all(qmp: &Qmp, diary: &Diary) -> Result<(), QmpError> {
    if our_jobs(qmp).await?.iter().all(|j| j.status.is_over()) {
        return remove_at_rest(qmp).await;
    }
    // Where the path was not cut through a descriptor of ours, because an earlier run had it.
    for node_name in our_nodes(qmp).await? {
        match qmp.execute(Yank::node(node_name)).await {
            Err(error) if !error.is_refused() => return Err(error),
            _yanked_or_not_connected => {}
        }
    }
    if !qmp.execute(QueryStatus).await?.running {
        return remove_at_rest(qmp).await;
    }
    diary.mention(&Record::Stopping);
    let removed = match qmp.execute(Stop).await {
        Ok(_) => remove_at_rest(qmp).await,
        Err(error) => Err(error),
    };
    // Also after a `stop` that was not answered in time: it may be carried out yet.
    qmp.execute(Cont).await?;
    diary.mention(&Record::Resumed);
    removed
}

/// Cancels every job by force, waits for their end, and removes our nodes.
async fn remove_at_rest(qmp: &Qmp) -> Result<(), QmpError> {
    let end = Instant::now() + deadline::JOB_ABORT;
    let mut last = None;
    loop {
        let jobs = our_jobs(qmp).await?;
        for job in &jobs {
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
        if jobs.is_empty() {
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

async fn our_jobs(qmp: &Qmp) -> Result<Vec<BlockJobInfo>, QmpError> {
    let mut jobs = qmp.execute(QueryBlockJobs).await?;
    jobs.retain(|job| job.device.starts_with(PREFIX));
    Ok(jobs)
}

async fn our_nodes(qmp: &Qmp) -> Result<Vec<String>, QmpError> {
    let nodes = qmp.execute(QueryNamedBlockNodes { flat: true }).await?;
    let names = nodes.into_iter().filter_map(|n| n.node_name);
    Ok(names.filter(|name| name.starts_with(PREFIX)).collect())
}

async fn remove_nodes(qmp: &Qmp) -> Result<(), QmpError> {
    for node_name in our_nodes(qmp).await? {
        qmp.execute(BlockdevDel { node_name }).await?;
    }
    Ok(())
}
