//! The source: the node that runs the VM, and drives its migration.
//!
//! ```text
//!   Prepared ──▶ Armed ──▶ Copying ──▶ Paused ══▶ Committed
//!       └──────────┴──────────┴──────────┴──▶ abort: undo everything, the VM goes on here
//! ```
//!
//! Each state is a type; each step consumes one and returns the next. `Committed` has no way back:
//! it can only finish.

mod aborted;
mod arm;
pub(super) mod commit;
mod conntrack;
mod cutover;
pub(super) mod finish;
mod give_back;
mod hooks;
mod kept;
mod known;
mod lane;
pub(crate) mod peer;
mod precopy;
pub(crate) mod prepare;
mod recover;
pub(crate) mod storage;
mod streams;

pub(crate) use arm::outer;
pub(crate) use finish::drop_records;
pub(crate) use peer::Peer;
pub(crate) use recover::inject;

use tokio_util::sync::CancellationToken;

use self::aborted::Left;
use self::conntrack::Connections;
use super::diary::Diary;
use super::error::{CopyRates, MigrateError, chain};
use super::progress::{Outlets, Progress};
use super::report::{Outcome, Report};
use super::rollback::UndoStack;
use super::shared::Held;
use crate::config::SourceConfig;
use crate::deadline;
use crate::qmp::Qmp;
use crate::role::Role;
use crate::session_id::SessionId;

/// What every state carries along.
pub(crate) struct Run {
    pub(crate) config: SourceConfig,
    /// The VM's QEMU, once it was reached.
    pub(crate) vm: Option<Qmp>,
    pub(crate) session: SessionId,
    /// Set by the first signal.
    pub(crate) stop: CancellationToken,
    pub(crate) progress: Progress,
    pub(crate) report: Report,
    pub(crate) undo: UndoStack,
    pub(crate) diary: Diary,
    /// The VM's volumes that both nodes have open.
    pub(crate) shared: Held,
    /// Of the VM, as this node's kernel tracks them.
    pub(crate) connections: Connections,
    /// What an abort took back.
    pub(crate) returned: give_back::ReturnedCell,
    /// When the user's time is over.
    pub(crate) limit: Option<tokio::time::Instant>,
    /// When the VM has stood still for as long as the user allows, once it does.
    pub(crate) pause_end: Option<tokio::time::Instant>,
}

impl Run {
    /// Between two steps: has somebody asked us to stop, or is the time over?
    pub(crate) fn check_interrupt(&self) -> Result<(), MigrateError> {
        if self.stop.is_cancelled() {
            return Err(MigrateError::Interrupted);
        }
        let is_over = |end: Option<tokio::time::Instant>| {
            end.is_some_and(|end| end <= tokio::time::Instant::now())
        };
        if is_over(self.limit) {
            return Err(self.timed_out(None));
        }
        if is_over(self.pause_end) {
            return Err(self.paused_too_long());
        }
        Ok(())
    }

    /// Waits until there is a reason to give up.
    pub(crate) async fn cut_short(&self) -> MigrateError {
        let at = async |end: Option<tokio::time::Instant>| match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => MigrateError::Interrupted,
            () = at(self.limit) => self.timed_out(None),
            () = at(self.pause_end) => self.paused_too_long(),
        }
    }

    fn paused_too_long(&self) -> MigrateError {
        MigrateError::PauseTooLong {
            limit: self.config.pause_limit.unwrap_or_default(),
        }
    }

    /// The VM stands still from now on.
    pub(crate) fn start_pause(&mut self) {
        let limit = self.config.pause_limit;
        self.pause_end = limit.map(|limit| tokio::time::Instant::now() + limit);
    }

    /// The user's time begins to run, unless it does already.
    pub(crate) fn start_clock(&mut self) {
        let limit = tokio::time::Instant::now() + self.config.migration_timeout;
        self.limit.get_or_insert(limit);
    }

    pub(crate) fn timed_out(&self, copy: Option<CopyRates>) -> MigrateError {
        MigrateError::TimedOut {
            after: self.config.migration_timeout,
            attached: self.shared.names(),
            copy,
        }
    }
}

/// Migrates the VM. Never fails: how it ended is in the report.
pub async fn run(config: SourceConfig, outlets: Outlets, stop: CancellationToken) -> Report {
    let session = SessionId::random();
    let mut run = Run {
        config,
        vm: None,
        session,
        stop,
        progress: Progress::new(outlets),
        report: Report::new(session, Role::Source),
        undo: UndoStack::default(),
        diary: Diary::default(),
        shared: Held::default(),
        connections: Connections::default(),
        returned: give_back::ReturnedCell::default(),
        limit: None,
        pause_end: None,
    };
    run.progress.start(session);
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
    run.shared.stand_down().await;
    let cleanup = std::mem::take(&mut run.undo).unwind(deadline::UNDO).await;
    run.diary.close(&cleanup);
    let left = match &run.vm {
        Some(vm) => Left::of(vm).await,
        None => Left::Running,
    };
    run.progress.end();
    let mut report = run.report;
    report.outcome = match (interrupted, touched) {
        (true, _) => Outcome::Cancelled,
        (false, true) if error.is_timeout() => Outcome::TimedOut,
        (false, true) => Outcome::Failed,
        (false, false) => Outcome::Refused,
    };
    report.error = Some(if interrupted {
        match left {
            Left::Running => format!("interrupted during {phase}; the VM goes on here"),
            other => format!("interrupted during {phase}. {other}"),
        }
    } else if touched {
        format!("{phase}: {}. {left}", chain(error))
    } else {
        chain(error)
    });
    report.conntrack = run.connections.report();
    report.returned = run.returned.get().copied();
    report
        .warnings
        .extend(report.returned.and_then(|returned| returned.missing()));
    report.phases = run.progress.phases().to_vec();
    // The incoming QEMU is ended once it was asked to receive the VM.
    let let_go = matches!(phase, "copy RAM" | "cutover");
    report.shared_volumes = run.shared.report(let_go);
    report.cleanup = cleanup;
    report
}
