//! The source: the node that runs the VM, and drives its migration.
//!
//! ```text
//!   Prepared ──▶ Armed ──▶ Copying ──▶ Paused ══▶ Committed
//!       └──────────┴──────────┴──────────┴──▶ abort: undo everything, the VM goes on here
//! ```
//!
//! Each state is a type; each step consumes one and returns the next. `Committed` has no way back:
//! it can only finish.

mod arm;
mod cutover;
mod finish;
mod hooks;
mod peer;
mod precopy;
mod prepare;
mod recover;
mod storage;

pub(crate) use finish::drop_records;
pub(crate) use recover::inject;

use indicatif::MultiProgress;
use tokio_util::sync::CancellationToken;

use super::error::{MigrateError, chain};
use super::ledger::Recovered;
use super::progress::Progress;
use super::report::{Outcome, Report, Role};
use super::rollback::UndoStack;
use crate::config::SourceConfig;
use crate::deadline;
use crate::session_id::SessionId;

/// What every state carries along.
pub(crate) struct Run {
    pub(crate) config: SourceConfig,
    pub(crate) session: SessionId,
    /// Set by the first signal.
    pub(crate) stop: CancellationToken,
    pub(crate) progress: Progress,
    pub(crate) report: Report,
    pub(crate) recovered: Recovered,
    pub(crate) undo: UndoStack,
}

impl Run {
    /// Between two steps: has somebody asked us to stop?
    pub(crate) fn check_interrupt(&self) -> Result<(), MigrateError> {
        if self.stop.is_cancelled() {
            Err(MigrateError::Interrupted)
        } else {
            Ok(())
        }
    }
}

/// Migrates the VM. Never fails: how it ended is in the report.
pub async fn run(config: SourceConfig, bars: MultiProgress, stop: CancellationToken) -> Report {
    let session = SessionId::random();
    let mut run = Run {
        config,
        session,
        stop,
        progress: Progress::new(bars),
        report: Report::new(session, Role::Source),
        recovered: Recovered::default(),
        undo: UndoStack::default(),
    };
    match until_commit(&mut run).await {
        Ok(committed) => committed.finish(run).await,
        Err(error) => abort(run, &error).await,
    }
}

async fn until_commit(run: &mut Run) -> Result<finish::Committed, MigrateError> {
    run.progress.begin("prepare");
    let stop = run.stop.clone();
    let prepared = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(MigrateError::Interrupted),
        prepared = prepare::prepare(run) => prepared?,
    };
    run.progress.begin("arm");
    let armed = arm::arm(prepared, run).await?;
    run.check_interrupt()?;
    let armed = storage::mirror(armed, run).await?;
    run.check_interrupt()?;
    run.progress.begin("copy RAM");
    let ready = precopy::copy(armed, run).await?;
    run.progress.begin("cutover");
    let paused = cutover::pause(ready, run).await?;
    run.check_interrupt()?;
    paused.commit(run).await
}

/// Before COMMIT: everything is undone and the VM goes on here.
async fn abort(mut run: Run, error: &MigrateError) -> Report {
    let phase = run.progress.current();
    run.progress.begin("undo");
    let interrupted = matches!(error, MigrateError::Interrupted);
    // Prepare only looks.
    let touched = phase != "prepare";
    if !interrupted {
        tracing::error!(phase, error = chain(error), "the migration failed");
    }
    let cleanup = std::mem::take(&mut run.undo).unwind(deadline::UNDO).await;
    run.progress.end();
    let mut report = run.report;
    report.outcome = match (interrupted, touched) {
        (true, _) => Outcome::Interrupted,
        (false, true) => Outcome::Failed,
        (false, false) => Outcome::Refused,
    };
    report.error = Some(if interrupted {
        format!("interrupted during {phase}; the VM goes on here")
    } else if touched {
        format!(
            "{phase}: {}. The VM runs on the source; it is safe to retry",
            chain(error)
        )
    } else {
        chain(error)
    });
    report.phases = run.progress.phases().to_vec();
    report.cleanup = cleanup;
    report
}
