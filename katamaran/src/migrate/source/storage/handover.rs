//! The hand-over, while the VM is stopped: each drive becomes the destination's, whole.
//!
//! ```text
//!   a  every job is told to end gracefully; each has to be concluded, without an error, nothing missing
//!      (meanwhile the rest of the RAM goes over, and QEMU pauses in pre-switchover)
//!   b  the backlog of each drive, 0, goes into the report
//!   c  with --verify-storage, both nodes' drives are compared
//!   d  the destination closes its exports, and with them the last connections to its drives
//!   e  only then QEMU may go on: it lets go of its disks, the destination's QEMU takes its own
//! ```
//!
//! The jobs, concluded, and the nodes that they wrote to stay until the VM runs: nobody uses them any more, and
//! dismissing a job takes QEMU 1 ms, removing a node 3 ms.
//!
//! N.B. the order is the point. A job that lives when QEMU lets go of its disks crashes it, or loses
//! what was acknowledged; an export that is open when the destination takes its disks keeps it from that.

use std::time::Instant;

use crate::deadline;
use crate::migrate::error::{Doing as _, MigrateError, chain};
use crate::migrate::message::{Reply, Request};
use crate::migrate::storage::StorageError;
use crate::qmp::command::{BlockJobCancel, MigrateContinue, MigrationStatus, QueryMigrate};
use crate::qmp::{Event, Qmp};
use crate::relay::RelayStatus;

use super::{Mirror, verify};
use crate::migrate::source::Run;
use crate::migrate::source::arm::Armed;
use crate::migrate::source::cutover::ms_since;
use crate::migrate::source::peer::bad_news;

/// No job lives, no export is open, every drive is the destination's. Made by [`hand_over`] alone.
#[derive(Debug)]
pub(crate) struct HandedOver(());

/// Hands every drive over and lets QEMU go on with the migration. The VM is stopped; RAM flows.
pub(crate) async fn hand_over(
    mirror: Mirror,
    armed: &mut Armed,
    run: &mut Run,
    relay: &RelayStatus,
    flip: Instant,
) -> Result<HandedOver, MigrateError> {
    let within = deadline::SWITCHOVER;
    let end = tokio::time::Instant::now() + within;
    let (mut ended, mut held, mut asked) = (false, false, false);
    {
        let ending = mirror.end();
        // The events may have told it already, to somebody else.
        let is_held = is_held(armed.prepared.node.qmp.clone());
        tokio::pin!(ending, is_held);
        while !(ended && held) {
            tokio::select! {
                biased;
                result = &mut ending, if !ended => {
                    result?;
                    ended = true;
                    run.report.cutover.disks_ended_ms = Some(ms_since(flip));
                }
                told = &mut is_held, if ended && !asked => {
                    asked = true;
                    held |= told?;
                }
                event = armed.prepared.node.events.recv(), if !held => {
                    let event = event.doing("watch QEMU pause before the switch-over")?;
                    held = is_pre_switchover(&event).map_err(|error| mirror.blame(error))?;
                }
                notice = armed.prepared.notices.next() => {
                    return Err(match bad_news(notice.doing("hear from the destination")?) {
                        Some(error) => mirror.blame(error),
                        None => MigrateError::OutOfStep { what: "the hand-over" },
                    });
                }
                error = relay.failed() => return Err(error).doing("carry the RAM stream"),
                over = run.cut_short() => return Err(over),
                () = tokio::time::sleep_until(end) => {
                    return Err(MigrateError::Deadline { what: "the end of the RAM copy", within });
                }
            }
        }
    }
    mirror.note_end(run);
    verify::verify(&mirror, armed, run).await?;
    close_exports(armed).await?;
    armed
        .prepared
        .node
        .qmp
        .execute(MigrateContinue::default())
        .await
        .doing("let the migration go on")?;
    run.report.cutover.handed_over_ms = Some(ms_since(flip));
    Ok(HandedOver(()))
}

impl Mirror {
    /// Ends every job gracefully, all at once.
    async fn end(&self) -> Result<(), MigrateError> {
        self.watch.expect_end();
        let told = self.drives.iter().map(|drive| {
            let cancel = BlockJobCancel {
                device: drive.job.job.clone(),
                force: false,
            };
            self.execute(drive, "end its mirror", cancel)
        });
        let ended = async {
            futures_util::future::try_join_all(told).await?;
            self.until_ended().await
        };
        tokio::select! {
            biased;
            error = self.watch.failed() => return Err(error.into()),
            ended = ended => ended?,
            () = tokio::time::sleep(deadline::HAND_OVER) => return Err(self.endless().into()),
        }
        Ok(())
    }

    /// A path that broke is why QEMU fails, though it does not say so: it flushes what the mirrors wrote to.
    fn blame(&self, error: MigrateError) -> MigrateError {
        if !self.watch.is_cut() {
            return error;
        }
        StorageError::PathBroken {
            job: self.drives[0].job.clone(),
            reason: chain(&error),
        }
        .into()
    }

    async fn until_ended(&self) -> Result<(), MigrateError> {
        let mut progress = self.watch.progress();
        let ended = progress
            .wait_for(|seen| seen.len() == self.drives.len() && seen.iter().all(|d| d.is_ended()))
            .await;
        match ended {
            Ok(_) => Ok(()),
            // The watch has ended, and says why.
            Err(_closed) => Err(self.watch.failed().await.into()),
        }
    }

    fn endless(&self) -> StorageError {
        let progress = self.watch.progress();
        let seen = progress.borrow();
        let job = seen
            .iter()
            .find(|d| !d.is_ended())
            .map(|d| d.job.clone())
            .unwrap_or_else(|| self.drives[0].job.clone());
        StorageError::Slow {
            job,
            what: "end",
            within: deadline::HAND_OVER,
        }
    }

    /// The last figures, and the backlog.
    fn note_end(&self, run: &mut Run) {
        let seen = self.watch.progress().borrow().clone();
        self.note(run, &seen);
        for (disk, progress) in run.report.disks.iter_mut().zip(&seen) {
            disk.backlog_at_commit = Some(progress.backlog());
        }
    }
}

async fn close_exports(armed: &Armed) -> Result<(), MigrateError> {
    match armed
        .prepared
        .peer
        .ask(
            "have the destination close its exports",
            Request::CloseExport,
            deadline::EXPORT,
        )
        .await?
    {
        Reply::ExportClosed => Ok(()),
        _ => Err(MigrateError::OutOfStep {
            what: "CloseExport",
        }),
    }
}

async fn is_held(qmp: Qmp) -> Result<bool, MigrateError> {
    let info = qmp
        .execute(QueryMigrate)
        .await
        .doing("ask how far the migration is")?;
    Ok(info.status == Some(MigrationStatus::PreSwitchover))
}

fn is_pre_switchover(event: &Event) -> Result<bool, MigrateError> {
    match event.migration_status() {
        Some(MigrationStatus::PreSwitchover) => Ok(true),
        Some(
            status @ (MigrationStatus::Failed
            | MigrationStatus::Cancelled
            | MigrationStatus::Completed),
        ) => Err(MigrateError::MigrationEnded {
            status: status.to_string(),
            reason: None,
        }),
        _ => Ok(false),
    }
}
