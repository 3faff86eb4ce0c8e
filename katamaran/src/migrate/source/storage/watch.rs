//! Watches the mirror jobs from their start to their end: a job that was ready once can die later, and
//! nobody would notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::deadline;
use crate::migrate::storage::job::{JobTracker, Standing};
use crate::migrate::storage::{DriveProgress, Meter, Mirrored, StorageError};
use crate::qmp::command::{BlockJobInfo, QueryBlockJobs};
use crate::qmp::{Event, EventName, EventStream, Qmp, QmpError};
use crate::relay::RelayStatus;

/// The watch over all jobs; ends when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    progress: watch::Receiver<Vec<DriveProgress>>,
    failure: watch::Receiver<Option<StorageError>>,
    ending: Arc<AtomicBool>,
    path: RelayStatus,
    drives: usize,
    _task: JoinSet<()>,
}

impl Watch {
    /// Watches jobs that were started when it `began`. `events` were subscribed to before that, so that none is
    /// missed.
    pub(super) fn start(
        qmp: Qmp,
        events: EventStream,
        path: RelayStatus,
        jobs: Vec<JobTracker>,
        began: Instant,
    ) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (progress, progress_seen) = watch::channel(Vec::new());
        let (failure, failure_seen) = watch::channel(None);
        let (its_path, drives) = (path.clone(), jobs.len());
        let watcher = Watcher {
            qmp,
            events,
            path,
            drives: jobs.into_iter().map(Followed::new).collect(),
            began,
            ending: Arc::clone(&ending),
            progress,
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = watcher.run().await {
                tracing::debug!(%error, "a mirror failed");
                failure.send_replace(Some(error));
            }
            // The receivers learn from the end of the senders that nothing more will come.
        });
        Self {
            progress: progress_seen,
            failure: failure_seen,
            ending,
            path: its_path,
            drives,
            _task: task,
        }
    }

    /// Whether a drive has lost its connection. Each has one of its own, from the start of its job until the
    /// destination closes its exports.
    pub(super) fn is_cut(&self) -> bool {
        is_cut(&self.path, self.drives)
    }

    /// From now on the jobs may end, gracefully. To be called before they are told to.
    pub(super) fn expect_end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// How far the drives are, and each change of it.
    pub(super) fn progress(&self) -> watch::Receiver<Vec<DriveProgress>> {
        self.progress.clone()
    }

    /// Waits for the first failure. Pends for ever while the mirrors work, and once they have ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn failed(&self) -> StorageError {
        let mut failure = self.failure.clone();
        let told = failure.wait_for(Option::is_some).await;
        match told.ok().and_then(|error| error.clone()) {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }
}

/// A job and its speed.
struct Followed {
    tracker: JobTracker,
    meter: Meter,
    /// When it was ready the first time, and what was copied then.
    ready: Option<(Duration, u64)>,
    /// An event said that it is over; nobody has looked since.
    told_over: bool,
}

impl Followed {
    fn new(tracker: JobTracker) -> Self {
        Self {
            tracker,
            meter: Meter::default(),
            ready: None,
            told_over: false,
        }
    }

    fn progress(&mut self, at: Duration, standing: Standing) -> DriveProgress {
        let (copied, total) = self.tracker.progress();
        if standing.is_ready() {
            self.ready.get_or_insert((at, copied));
        }
        DriveProgress {
            job: self.tracker.job().clone(),
            standing,
            copied,
            total,
            rate: self.meter.observe(at, copied),
            stuck: self.tracker.stuck_for(at),
            took: self.ready.map_or(at, |(at, _)| at),
            copied_until_ready: self.ready.map(|(_, copied)| copied),
        }
    }
}

struct Watcher {
    qmp: Qmp,
    events: EventStream,
    path: RelayStatus,
    drives: Vec<Followed>,
    began: Instant,
    ending: Arc<AtomicBool>,
    progress: watch::Sender<Vec<DriveProgress>>,
}

impl Watcher {
    /// Until all jobs have ended as they should, or one has not.
    async fn run(mut self) -> Result<(), StorageError> {
        loop {
            let jobs = self.qmp.execute(QueryBlockJobs).await.map_err(unwatched)?;
            // What QEMU reported before it answered says on which side a job failed.
            while let Some(event) = self.events.try_recv() {
                self.is_news(&event);
            }
            let seen = self.look(&jobs)?;
            let ended = seen.iter().all(|d| d.standing == Standing::Ended);
            let connected = seen.iter().all(|d| d.standing != Standing::Awaited);
            self.progress.send_replace(seen);
            if ended {
                return Ok(());
            }
            if connected {
                self.check_path()?;
            }
            self.wait().await?;
        }
    }

    fn look(&mut self, jobs: &[BlockJobInfo]) -> Result<Vec<DriveProgress>, StorageError> {
        let at = self.began.elapsed();
        // After the reply: a job that ended because it was told to was told before that.
        let ending = self.ending.load(Ordering::SeqCst);
        let mut seen = Vec::with_capacity(self.drives.len());
        for drive in &mut self.drives {
            let job = jobs.iter().find(|j| j.device == drive.tracker.job().job);
            match drive.tracker.observe(at, ending, job) {
                Ok(standing) => seen.push(drive.progress(at, standing)),
                Err(error) => return Err(self.with_cause(error)),
            }
        }
        Ok(seen)
    }

    /// An I/O error is what QEMU makes of a broken path as well.
    fn with_cause(&self, error: StorageError) -> StorageError {
        match error {
            StorageError::Io { job, reason, .. }
                if reason.contains("Input/output error") && self.is_cut() =>
            {
                StorageError::PathBroken { job, reason }
            }
            other => other,
        }
    }

    fn is_cut(&self) -> bool {
        is_cut(&self.path, self.drives.len())
    }

    /// An idle mirror does not notice that its target is gone.
    fn check_path(&self) -> Result<(), StorageError> {
        if !self.is_cut() || self.ending.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reason = match self.path.failure() {
            Some(error) => crate::migrate::error::chain(&error),
            None => "the destination closed it".to_owned(),
        };
        match self.drives.first() {
            Some(drive) => Err(StorageError::PathBroken {
                job: self.any_job(drive),
                reason,
            }),
            None => Ok(()),
        }
    }

    /// All drives share one fate here; the message names the first and says so.
    fn any_job(&self, first: &Followed) -> Mirrored {
        let mut job = first.tracker.job().clone();
        if self.drives.len() > 1 {
            job.drive = format!("{} (and {} more)", job.drive, self.drives.len() - 1);
        }
        job
    }

    /// Until there may be something new.
    async fn wait(&mut self) -> Result<(), StorageError> {
        let next_look = tokio::time::sleep(deadline::JOB_POLL);
        tokio::pin!(next_look);
        if self.all_over() {
            return Ok(());
        }
        loop {
            let path = self.path.clone();
            let told = path.failure().is_some();
            tokio::select! {
                event = self.events.recv() => {
                    if self.is_news(&event.map_err(unwatched)?) {
                        return Ok(());
                    }
                }
                _ = path.failed(), if !told => return Ok(()),
                () = &mut next_look => return Ok(()),
            }
        }
    }

    /// Whether every job said that it is over. Said once: a look follows.
    fn all_over(&mut self) -> bool {
        let all = self.drives.iter().all(|drive| drive.told_over);
        if all {
            for drive in &mut self.drives {
                drive.told_over = false;
            }
        }
        all
    }

    /// Takes note of an event; says whether it is worth a look at the jobs.
    ///
    /// While they are ending, the VM is stopped, and each question costs it a millisecond; jobs change their status
    /// dozens of times then, for each drains the others. One look at the end tells it all.
    fn is_news(&mut self, event: &Event) -> bool {
        let at = self.began.elapsed();
        let job = event.block_job();
        let Some(drive) = self
            .drives
            .iter_mut()
            .find(|d| Some(d.tracker.job().job.as_str()) == job)
        else {
            return false;
        };
        match event.name {
            EventName::BlockJobError => {
                drive.tracker.note_error(at, event.text("operation"));
                true
            }
            EventName::JobStatusChange => {
                drive.told_over |= event.job_status().is_some_and(|status| status.is_over());
                !self.ending.load(Ordering::SeqCst) || self.all_over()
            }
            EventName::BlockJobCompleted | EventName::BlockJobReady => {
                !self.ending.load(Ordering::SeqCst)
            }
            EventName::BlockJobCancelled => true,
            _ => false,
        }
    }
}

fn is_cut(path: &RelayStatus, drives: usize) -> bool {
    let open = usize::try_from(path.counters().streams_open).unwrap_or(usize::MAX);
    open < drives || path.failure().is_some()
}

fn unwatched(error: QmpError) -> StorageError {
    StorageError::Watch {
        source: Arc::new(error),
    }
}
