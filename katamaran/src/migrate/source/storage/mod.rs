//! Storage: every drive is mirrored to the destination, and followed to the hand-over.
//!
//! ```text
//!   QEMU ── mirror job ──▶ nbd node ── a socket that QEMU is handed ══▶ relay ──▶ the destination's export
//! ```
//!
//! The copy runs in the background at first. Once every drive is ready, the guest's writes wait for both
//! sides (`write-blocking`), so that nothing is left to copy when the VM is stopped, however fast it
//! writes; sooner if the guest writes faster than the path takes it, so that no drive would ever be ready. A QEMU
//! that can't change over (before 8.2) mirrors like that from the start.

mod handover;
mod residue;
mod start;
mod verify;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use handover::{HandedOver, hand_over};
pub(crate) use residue::{Residue, remove_all};
pub(crate) use start::copy_mode;

use crate::deadline;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::report::Disk;
use crate::migrate::storage::drive::Drive;
use crate::migrate::storage::{DriveProgress, Mirrored, Pace, Side, StorageError, share};
use crate::qmp::command::{
    BlockJobChange, BlockJobSetSpeed, Command, CopyMode, QueryBlockJobs, QueryStatus,
};
use crate::qmp::{EventName, Qmp, QmpError};

use super::Run;
use super::arm::Armed;
use super::peer::{bad_news, cause_of};
use verify::Compared;
use watch::Watch;

/// A mirror under load that has copied nothing for so long may be stuck.
const STUCK: Duration = Duration::from_secs(1);

/// A drive and what mirrors it.
#[derive(Debug)]
struct MirroredDrive {
    drive: Drive,
    job: Mirrored,
    /// The node that is the destination's drive.
    target: String,
}

/// Mirrors that work, from the start of the copy to the hand-over.
#[derive(Debug)]
pub(crate) struct Mirror {
    qmp: Qmp,
    /// At least one.
    drives: Vec<MirroredDrive>,
    watch: Watch,
    residue: Residue,
    /// The source's own exports, to compare the drives through.
    compared: Option<Compared>,
    /// How the jobs copy now.
    mode: CopyMode,
    limit: Option<u64>,
    began: Instant,
}

/// Copies every drive, and returns when all of them are in step with the guest's writes.
pub(crate) async fn mirror(mut armed: Armed, run: &mut Run) -> Result<Armed, MigrateError> {
    let drives = std::mem::take(&mut armed.prepared.drives);
    if drives.is_empty() {
        return Ok(armed);
    }
    run.progress.begin("copy disks");
    let mut mirror = match start::start(&armed, run, drives).await {
        Ok(mirror) => mirror,
        Err(error) => return Err(cause_of(&mut armed.prepared.notices, error).await),
    };
    if let Err(error) = mirror.copy(&mut armed, run).await {
        return Err(cause_of(&mut armed.prepared.notices, error).await);
    }
    armed.mirror = Some(mirror);
    Ok(armed)
}

impl Mirror {
    /// What is to be removed on every way out.
    pub(crate) fn residue(&self) -> Residue {
        self.residue.clone()
    }

    /// Waits for the first failure of a mirror; see [`Watch::failed`].
    pub(crate) async fn failed(&self) -> MigrateError {
        self.watch.failed().await.into()
    }

    async fn copy(&mut self, armed: &mut Armed, run: &mut Run) -> Result<(), MigrateError> {
        self.follow(armed, run, None, |d| d.standing.is_ready())
            .await?;
        // What is left is what the guest has written meanwhile: it must not wait for a limit.
        if self.limit.is_some() {
            for drive in &self.drives {
                self.set_speed(drive, 0).await?;
            }
        }
        self.have_writes_wait().await?;
        let patience = run
            .config
            .storage_sync_timeout
            .saturating_sub(self.began.elapsed())
            .max(deadline::JOB_SYNC);
        self.follow(armed, run, Some(patience), |d| d.standing.is_synced())
            .await?;
        tracing::info!(
            drives = self.drives.len(),
            seconds = self.began.elapsed().as_secs(),
            "every drive is in step"
        );
        Ok(())
    }

    /// From now on a write of the guest is done when it is done on both nodes.
    async fn have_writes_wait(&mut self) -> Result<(), MigrateError> {
        if self.mode == CopyMode::WriteBlocking {
            return Ok(());
        }
        for drive in &self.drives {
            let change = BlockJobChange::write_blocking(drive.job.job.clone());
            self.execute(drive, "have the guest's writes wait for both nodes", change)
                .await?;
        }
        self.mode = CopyMode::WriteBlocking;
        Ok(())
    }

    /// Shows how far the drives are until `done` holds for each.
    async fn follow(
        &mut self,
        armed: &mut Armed,
        run: &mut Run,
        patience: Option<Duration>,
        done: impl Fn(&DriveProgress) -> bool,
    ) -> Result<(), MigrateError> {
        let stop = run.stop.clone();
        let end = patience.map(|within| (tokio::time::Instant::now() + within, within));
        let mut progress = self.watch.progress();
        let mut active = usize::MAX;
        let mut pace = Pace::default();
        loop {
            let seen = progress.borrow_and_update().clone();
            self.note(run, &seen);
            if seen.len() == self.drives.len() && seen.iter().all(&done) {
                return Ok(());
            }
            active = self.share_out(&seen, active).await?;
            if self.mode == CopyMode::Background && self.stands_still(&seen, &mut pace) {
                let told = "the guest writes to its drives as fast as they are copied: its writes wait for both nodes \
                            until the migration is over";
                tracing::warn!("{told}");
                run.report.warnings.push(told.to_owned());
                self.have_writes_wait().await?;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(MigrateError::Interrupted),
                error = self.watch.failed() => return Err(error.into()),
                event = armed.prepared.node.events.recv() => {
                    if event.doing("hear from QEMU")?.name == EventName::Stop {
                        must_run_still(&self.qmp).await?;
                    }
                }
                notice = armed.prepared.notices.next() => {
                    return Err(match bad_news(notice.doing("hear from the destination")?) {
                        Some(error) => error,
                        None => MigrateError::OutOfStep { what: "the copy of the drives" },
                    });
                }
                changed = progress.changed() => {
                    if changed.is_err() {
                        // The watch has ended, and says why.
                        return Err(self.watch.failed().await.into());
                    }
                }
                within = elapsed(end) => return Err(self.slow(&seen, &done, within).into()),
            }
        }
    }

    fn stands_still(&self, seen: &[DriveProgress], pace: &mut Pace) -> bool {
        // A job that has not looked through its drive yet does not know how much is left.
        let known = |d: &DriveProgress| d.total > 0 || d.standing.is_ready();
        let all_known = seen.len() == self.drives.len() && seen.iter().all(known);
        let left = seen.iter().map(DriveProgress::backlog).sum();
        all_known && pace.stands_still(self.began.elapsed(), left)
    }

    /// The jobs that still copy get equal shares of the limit.
    async fn share_out(
        &self,
        seen: &[DriveProgress],
        before: usize,
    ) -> Result<usize, MigrateError> {
        let copying = |d: &&DriveProgress| !d.standing.is_ready();
        let active = seen.iter().filter(copying).count();
        if self.limit.is_some() && active > 0 && active < before.min(self.drives.len()) {
            for progress in seen.iter().filter(copying) {
                let drive = self.drives.iter().find(|d| d.job == progress.job);
                if let Some(drive) = drive {
                    self.set_speed(drive, share(self.limit, active)).await?;
                }
            }
        }
        Ok(active)
    }

    async fn set_speed(&self, drive: &MirroredDrive, speed: u64) -> Result<(), MigrateError> {
        let set = BlockJobSetSpeed {
            device: drive.job.job.clone(),
            speed,
        };
        self.execute(drive, "set the limit of its copy", set).await
    }

    /// Just before the cutover: every job is there and in step, and no write is stuck in one, which would keep
    /// the VM from stopping. Almost always so at the first look.
    pub(crate) async fn confirm_in_step(&self) -> Result<(), MigrateError> {
        let end = Instant::now() + deadline::JOB_SYNC;
        loop {
            let jobs = tokio::select! {
                error = self.watch.failed() => return Err(error.into()),
                jobs = self.qmp.execute(QueryBlockJobs) => jobs.doing("ask for the block jobs")?,
            };
            let behind = self.drives.iter().find(|drive| {
                let job = jobs.iter().find(|j| j.device == drive.job.job);
                !job.is_some_and(|j| j.ready && j.actively_synced != Some(false))
            });
            let stuck = self.stuck(STUCK);
            let Some(behind) = behind.map(|d| d.job.clone()).or(stuck) else {
                return Ok(());
            };
            if Instant::now() >= end {
                return Err(slow(&behind, deadline::JOB_SYNC).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A job that has had something to copy and copied nothing for so long.
    fn stuck(&self, span: Duration) -> Option<Mirrored> {
        let progress = self.watch.progress();
        let seen = progress.borrow();
        seen.iter().find(|d| d.stuck >= span).map(|d| d.job.clone())
    }

    /// Why the VM can't be stopped in time: a write of the guest that waits for the destination.
    pub(crate) fn keeps_vm_from_stopping(&self) -> MigrateError {
        let stuck = self.stuck(Duration::from_nanos(1));
        StorageError::Slow {
            job: stuck.unwrap_or_else(|| self.drives[0].job.clone()),
            what: "let the VM stop",
            within: deadline::STOP_MIRRORED,
        }
        .into()
    }

    fn slow(
        &self,
        seen: &[DriveProgress],
        done: impl Fn(&DriveProgress) -> bool,
        within: Duration,
    ) -> StorageError {
        let behind = seen.iter().find(|d| !done(d)).map(|d| &d.job);
        slow(behind.unwrap_or(&self.drives[0].job), within)
    }

    /// Puts how far the drives are into the report and before the user's eyes.
    fn note(&self, run: &mut Run, seen: &[DriveProgress]) {
        run.progress.disks(seen);
        run.report.disks = seen
            .iter()
            .filter_map(|progress| {
                let drive = self.drives.iter().find(|d| d.job == progress.job)?;
                Some(Disk::new(
                    drive.drive.description.virtual_size,
                    progress,
                    &self.mode,
                ))
            })
            .collect();
    }

    async fn execute<C: Command>(
        &self,
        drive: &MirroredDrive,
        doing: &'static str,
        command: C,
    ) -> Result<(), MigrateError> {
        execute(&self.qmp, &drive.job, doing, command).await
    }
}

/// Has the source's QEMU do something for a drive.
async fn execute<C: Command>(
    qmp: &Qmp,
    job: &Mirrored,
    doing: &'static str,
    command: C,
) -> Result<(), MigrateError> {
    for_drive(qmp.execute(command).await.map(|_| ()), job, doing)
}

/// What came of something that the source's QEMU should do for a drive.
fn for_drive(
    done: Result<(), QmpError>,
    job: &Mirrored,
    doing: &'static str,
) -> Result<(), MigrateError> {
    match done {
        Ok(()) => Ok(()),
        Err(error) => Err(StorageError::Qemu {
            drive: job.drive.clone(),
            doing,
            side: Side::Source,
            source: Arc::new(error),
        }
        .into()),
    }
}

fn slow(job: &Mirrored, within: Duration) -> StorageError {
    StorageError::Slow {
        job: job.clone(),
        what: "get in step with the guest's writes",
        within,
    }
}

async fn elapsed(end: Option<(tokio::time::Instant, Duration)>) -> Duration {
    match end {
        Some((at, within)) => {
            tokio::time::sleep_until(at).await;
            within
        }
        None => std::future::pending().await,
    }
}

/// A VM that was stopped for a moment is copied on.
async fn must_run_still(qmp: &Qmp) -> Result<(), MigrateError> {
    let status = qmp
        .execute(QueryStatus)
        .await
        .doing("ask why the VM stopped")?;
    if status.running {
        Ok(())
    } else {
        Err(MigrateError::StoppedByOthers(status.status.to_string()))
    }
}

/// Pends for ever without a mirror.
pub(crate) async fn failed(mirror: Option<&Mirror>) -> MigrateError {
    match mirror {
        Some(mirror) => mirror.failed().await,
        None => std::future::pending().await,
    }
}
