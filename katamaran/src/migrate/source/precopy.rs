//! Pre-copy: RAM flows while the VM runs, until the pause would be short enough.

use std::time::{Duration, Instant};

use crate::deadline;
use crate::journal::Record;
use crate::migrate::convergence::{Controller, Decision, Pace, Reading};
use crate::migrate::error::{CopyRates, Doing as _, MigrateError};
use crate::migrate::message::{Reply, Request};
use crate::migrate::progress::RamProgress;
use crate::migrate::report::Ram;
use crate::qmp::command::{
    Capability, CapabilityState, Migrate, MigrateSetCapabilities, MigrateSetParameters,
    MigrationInfo, MigrationParameters, MigrationStatus, QueryMigrate, QueryMigrateCapabilities,
    QueryMigrateParameters, QueryStatus, RunState,
};
use crate::qmp::{Event, EventName, Qmp};
use crate::relay::{Governor, Pace as RelayPace, RelayStatus, SourceRelay};

use crate::control::Preamble;
use crate::migrate::node::{make_private, relay_directory};

use super::Run;
use super::arm::Armed;
use super::conntrack::Connections;
use super::give_back::GiveBack;
use super::peer::{bad_news, cause_of};
use super::storage;
use super::streams;
use crate::role::Role;

/// QEMU's guard: it may switch over by itself only when this much would be left to do.
const GUARD_DOWNTIME_MS: u64 = 1;
/// QEMU's own rate limit works in steps of 100 ms; pacing is the relay's business.
const UNLIMITED: u64 = 1 << 40;
/// With `avail-switchover-bandwidth` (QEMU 8.2) the guard is one page, whatever bandwidth was measured.
const GUARD_BANDWIDTH: u64 = 4096 * 1000;
/// The first QEMU that knows `avail-switchover-bandwidth`.
const HAS_GUARD_BANDWIDTH: (u32, u32) = (8, 2);

/// The VM can be stopped now; QEMU's stream is held.
pub(crate) struct Ready {
    pub(crate) armed: Armed,
    pub(crate) governor: Governor,
    pub(crate) predicted: Duration,
    /// The STOP event of a QEMU that stopped the VM by itself.
    pub(crate) stopped_first: Option<Event>,
    pub(crate) relay: RelayStatus,
}

pub(crate) async fn copy(armed: Armed, run: &mut Run) -> Result<Ready, MigrateError> {
    let multifd = run.config.multifd_channels;
    let incoming = Request::Incoming {
        multifd_channels: multifd,
    };
    match armed
        .prepared
        .peer
        .ask(
            "let the destination's QEMU listen",
            incoming,
            deadline::REQUEST,
        )
        .await?
    {
        Reply::Listening => {}
        _ => return Err(MigrateError::OutOfStep { what: "Incoming" }),
    }
    run.start_clock();
    Connections::follow(&armed.prepared, run);
    set_up_qemu(&armed, run).await?;
    tokio::select! {
        biased;
        error = run.cut_short() => return Err(error),
        () = run.connections.caught_up() => {}
    }

    let governor = Governor::new(full_pace(run));
    let directory = relay_directory(run.session, Role::Source);
    if let Some(parent) = directory.parent() {
        make_private(parent)?;
    }
    let dial = streams::to_destination(&armed, run.session, Preamble::ram);
    let relay = SourceRelay::start(&directory, "ram.sock", dial, governor.clone())
        .doing("open the socket for QEMU's stream")?;
    let (uri, status) = (relay.uri(), relay.status().clone());
    run.undo.cleanup("RAM relay", move || async move {
        relay.shutdown().await;
        Ok(())
    });
    // In case QEMU stops the VM by itself, before we do.
    for hooks in armed.lanes.iter().filter_map(|lane| lane.hooks.as_ref()) {
        hooks
            .with(|d| d.set_copy_ring(true))
            .transpose()
            .doing("copy passed packets")?;
    }
    let give_back = GiveBack::new(
        &armed,
        run.returned.clone(),
        run.diary.clone(),
        governor.clone(),
    );
    run.undo
        .on_abort("the VM's stop and its migration", move || give_back.run());
    run.diary.note(&Record::Migrating)?;
    armed
        .prepared
        .node
        .qmp
        .execute(Migrate { uri })
        .await
        .doing("start the migration")?;

    converge(armed, run, governor, status).await
}

/// Sets what a migration needs, and remembers what was set before.
async fn set_up_qemu(armed: &Armed, run: &mut Run) -> Result<(), MigrateError> {
    let qmp = &armed.prepared.node.qmp;
    let before = qmp
        .execute(QueryMigrateParameters)
        .await
        .doing("ask for migration parameters")?;
    let switch = |capability, state| CapabilityState { capability, state };
    let known = qmp
        .execute(QueryMigrateCapabilities)
        .await
        .doing("ask for migration capabilities")?;
    let mut capabilities = vec![
        switch(Capability::Events, true),
        switch(Capability::Multifd, run.config.multifd_channels > 0),
        switch(Capability::AutoConverge, run.config.auto_converge),
        // Between the stop and QEMU's letting go of its disks: the time to hand the drives over.
        switch(Capability::PauseBeforeSwitchover, armed.mirror.is_some()),
    ];
    // From QEMU 8.1 on. While the VM runs, the switch-over waits for an acknowledgement that the destination never sends,
    // because it is not told to; once the VM is stopped, QEMU does not wait for it (`migration_can_switchover()`,
    // migration/migration.c).
    let ack = Capability::SwitchoverAck;
    if known.iter().any(|known| known.capability == ack) {
        capabilities.push(switch(Capability::ReturnPath, true));
        capabilities.push(switch(ack, true));
    }
    let restore = MigrationParameters {
        downtime_limit: before.downtime_limit,
        max_bandwidth: before.max_bandwidth,
        avail_switchover_bandwidth: before.avail_switchover_bandwidth,
        multifd_channels: before.multifd_channels,
        ..MigrationParameters::default()
    };
    let known = only(known, &capabilities);
    run.diary.note(&Record::QemuSettings {
        capabilities: serde_json::json!(known),
        parameters: serde_json::json!(restore),
    })?;
    restore_capabilities(known, run, qmp.clone());
    qmp.execute(MigrateSetCapabilities { capabilities })
        .await
        .doing("set migration capabilities")?;
    let knows_guard = {
        let (major, minor, _) = armed.prepared.node.qemu_version();
        (major, minor) >= HAS_GUARD_BANDWIDTH
    };
    let parameters = MigrationParameters {
        downtime_limit: Some(GUARD_DOWNTIME_MS),
        max_bandwidth: Some(UNLIMITED),
        avail_switchover_bandwidth: knows_guard.then_some(GUARD_BANDWIDTH),
        multifd_channels: (run.config.multifd_channels > 0)
            .then_some(run.config.multifd_channels.into()),
        ..MigrationParameters::default()
    };
    let restore_on = qmp.clone();
    run.undo
        .on_abort("QEMU's migration parameters", move || async move {
            restore_on
                .execute(MigrateSetParameters::from(restore))
                .await
                .map(|_| ())
                .map_err(|e| crate::migrate::error::chain(&e))
        });
    qmp.execute(MigrateSetParameters::from(parameters))
        .await
        .doing("set migration parameters")?;
    Ok(())
}

/// The switches that are changed, as they are now.
fn only(mut known: Vec<CapabilityState>, changed: &[CapabilityState]) -> Vec<CapabilityState> {
    known.retain(|k| changed.iter().any(|c| c.capability == k.capability));
    known
}

/// On an abort the switches are put back: the next migration of this VM may be somebody else's.
fn restore_capabilities(before: Vec<CapabilityState>, run: &mut Run, qmp: Qmp) {
    run.undo
        .on_abort("QEMU's migration capabilities", move || async move {
            let restore = MigrateSetCapabilities {
                capabilities: before,
            };
            match qmp.execute(restore).await {
                Ok(_) => Ok(()),
                Err(error) => Err(crate::migrate::error::chain(&error)),
            }
        });
}

fn full_pace(run: &Run) -> RelayPace {
    run.config
        .max_bandwidth
        .map_or(RelayPace::Full, RelayPace::Rate)
}

async fn converge(
    mut armed: Armed,
    run: &mut Run,
    governor: Governor,
    relay: RelayStatus,
) -> Result<Ready, MigrateError> {
    let began = Instant::now();
    let mut controller = Controller::new(run.config.downtime);
    let mut told_stalled = false;
    loop {
        let early = armed.early_stop.take().or_else(|| take_stop(&mut armed));
        if let Some(event) = early {
            must_be_switching_over(&armed, &governor).await?;
            return Ok(Ready {
                armed,
                governor,
                predicted: Duration::ZERO,
                stopped_first: Some(event),
                relay,
            });
        }
        let asked = armed.prepared.node.qmp.execute(QueryMigrate).await;
        let info = match asked.doing("ask how far the RAM copy is") {
            Ok(info) => info,
            Err(error) => return Err(cause_of(&mut armed.prepared.notices, error).await),
        };
        armed.observe_taps();
        if let Err(mut error) = check_status(&info) {
            // A stream that was not carried on ends QEMU's migration: that is the reason.
            if let Some(failure) = relay.failure() {
                error = Err::<(), _>(failure)
                    .doing("carry the RAM stream")
                    .err()
                    .unwrap_or(error);
            }
            return Err(cause_of(&mut armed.prepared.notices, error).await);
        }
        let now = reading(&info, began);
        let decision = controller.observe(now);
        note_ram(run, &controller, now, total(&info));
        match decision {
            Decision::Fire { predicted } => {
                governor.set(RelayPace::Hold);
                tracing::debug!(
                    predicted_ms = predicted.as_millis(),
                    remaining = now.remaining,
                    "cutting over"
                );
                return Ok(Ready {
                    armed,
                    governor,
                    predicted,
                    stopped_first: None,
                    relay,
                });
            }
            Decision::Continue { pace, poll } => {
                governor.set(match (pace, full_pace(run)) {
                    (Pace::Full, full) => full,
                    (Pace::Rate(rate), RelayPace::Rate(limit)) => RelayPace::Rate(rate.min(limit)),
                    (Pace::Rate(rate), _) => RelayPace::Rate(rate),
                });
                if let Err(error) = wait(&mut armed, run, &relay, poll).await {
                    return Err(cause_of(&mut armed.prepared.notices, error).await);
                }
            }
        }
        if controller.is_stalled() && !told_stalled {
            told_stalled = true;
            tracing::warn!(
                "the RAM copy is not converging: the guest dirties memory as fast as it is copied"
            );
        }
        if run
            .limit
            .is_some_and(|limit| limit <= tokio::time::Instant::now())
        {
            const MIB: f64 = 1048576.0;
            return Err(run.timed_out(Some(CopyRates {
                dirty_mib: controller.dirty_rate() / MIB,
                path_mib: controller.bandwidth() / MIB,
                pause_ms: controller.predict(now).as_secs_f64() * 1000.0,
            })));
        }
    }
}

/// Waits for the next look, or for anything that ends the copy.
async fn wait(
    armed: &mut Armed,
    run: &Run,
    relay: &RelayStatus,
    poll: Duration,
) -> Result<(), MigrateError> {
    tokio::select! {
        biased;
        () = run.stop.cancelled() => Err(MigrateError::Interrupted),
        event = armed.prepared.node.events.recv() => {
            let event = event.doing("hear from QEMU")?;
            if event.name == EventName::Stop {
                armed.early_stop = Some(event);
            }
            Ok(())
        }
        notice = armed.prepared.notices.next() => match bad_news(notice.doing("hear from the destination")?) {
            Some(error) => Err(error),
            None => Err(MigrateError::OutOfStep { what: "the RAM stream" }),
        },
        error = relay.failed() => Err(error).doing("carry the RAM stream"),
        error = storage::failed(armed.mirror.as_ref()) => Err(error),
        () = tokio::time::sleep(poll) => Ok(()),
    }
}

/// Not every STOP is QEMU's own: somebody else may have paused the VM.
///
/// A QEMU that switches over does nothing else until its stream has been taken (`migration_completion()`, migration/migration.c, holds
/// its big lock meanwhile), so that it could not answer while that is held or slowed.
pub(crate) async fn must_be_switching_over(
    armed: &Armed,
    governor: &Governor,
) -> Result<(), MigrateError> {
    governor.set(RelayPace::Full);
    let status = armed
        .prepared
        .node
        .qmp
        .execute(QueryStatus)
        .await
        .doing("ask why the VM stopped")?;
    match status.status {
        RunState::FinishMigrate | RunState::Postmigrate => Ok(()),
        other => Err(MigrateError::StoppedByOthers(other.to_string())),
    }
}

/// The STOP event, if QEMU has sent one.
pub(crate) fn take_stop(armed: &mut Armed) -> Option<Event> {
    while let Some(event) = armed.prepared.node.events.try_recv() {
        if event.name == EventName::Stop {
            return Some(event);
        }
    }
    None
}

fn check_status(info: &MigrationInfo) -> Result<(), MigrateError> {
    match &info.status {
        Some(
            MigrationStatus::Failed | MigrationStatus::Cancelled | MigrationStatus::Cancelling,
        ) => Err(MigrateError::MigrationEnded {
            status: info
                .status
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            reason: info.error_desc.clone(),
        }),
        _ => Ok(()),
    }
}

fn reading(info: &MigrationInfo, began: Instant) -> Reading {
    let ram = info.ram.clone().unwrap_or_default();
    Reading {
        at: began.elapsed(),
        remaining: ram.remaining.unwrap_or(0),
        transferred: ram.transferred.unwrap_or(0),
        syncs: ram.dirty_sync_count.unwrap_or(0),
    }
}

fn total(info: &MigrationInfo) -> u64 {
    info.ram.as_ref().and_then(|r| r.total).unwrap_or(0)
}

fn note_ram(run: &mut Run, controller: &Controller, now: Reading, total: u64) {
    run.progress.ram(RamProgress {
        total,
        remaining: now.remaining,
        transferred: now.transferred,
        pass: now.syncs,
        bandwidth: controller.measured_bandwidth(),
        dirty_rate: controller.measured_dirty_rate(),
        predicted: controller.predict(now),
        limit: run.config.downtime,
    });
    run.report.ram = Some(Ram {
        total,
        transferred: now.transferred,
        bandwidth: controller.measured_bandwidth(),
        dirty_rate: controller.measured_dirty_rate(),
        passes: now.syncs,
        remaining_at_stop: Some(now.remaining),
    });
}
