//! Events, and streams of them that lose none.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::client::Shared;
use super::command::{JobStatus, MigrationStatus};
use super::error::QmpError;
use crate::open_enum::open_enum;

open_enum! {
    /// The name of an event.
    pub enum EventName {
        BlockExportDeleted = "BLOCK_EXPORT_DELETED",
        BlockImageCorrupted = "BLOCK_IMAGE_CORRUPTED",
        BlockIoError = "BLOCK_IO_ERROR",
        BlockJobCancelled = "BLOCK_JOB_CANCELLED",
        BlockJobCompleted = "BLOCK_JOB_COMPLETED",
        BlockJobError = "BLOCK_JOB_ERROR",
        BlockJobPending = "BLOCK_JOB_PENDING",
        BlockJobReady = "BLOCK_JOB_READY",
        DeviceDeleted = "DEVICE_DELETED",
        GuestPanicked = "GUEST_PANICKED",
        JobStatusChange = "JOB_STATUS_CHANGE",
        Migration = "MIGRATION",
        MigrationPass = "MIGRATION_PASS",
        NicRxFilterChanged = "NIC_RX_FILTER_CHANGED",
        Powerdown = "POWERDOWN",
        Reset = "RESET",
        Resume = "RESUME",
        Shutdown = "SHUTDOWN",
        Stop = "STOP",
        Suspend = "SUSPEND",
        Wakeup = "WAKEUP",
        Watchdog = "WATCHDOG",
    }
}

/// One event of QEMU.
#[derive(Debug, Clone)]
pub struct Event {
    /// Which event.
    pub name: EventName,
    /// Its data; null where the event has none.
    pub data: Value,
    /// QEMU's host clock when it happened, in microseconds since the epoch.
    pub timestamp_us: Option<u64>,
}

impl Event {
    /// The new status that a `MIGRATION` event carries. QEMU sends these only with the capability
    /// `events` switched on.
    #[must_use]
    pub fn migration_status(&self) -> Option<MigrationStatus> {
        if self.name != EventName::Migration {
            return None;
        }
        self.text("status").map(MigrationStatus::from)
    }

    /// The block job that a `BLOCK_JOB_*` or `JOB_STATUS_CHANGE` event is about.
    #[must_use]
    pub fn block_job(&self) -> Option<&str> {
        match self.name {
            EventName::JobStatusChange => self.text("id"),
            _ => self.text("device"),
        }
    }

    /// The new status that a `JOB_STATUS_CHANGE` event carries.
    #[must_use]
    pub fn job_status(&self) -> Option<JobStatus> {
        if self.name != EventName::JobStatusChange {
            return None;
        }
        Some(JobStatus::from(self.text("status")?))
    }

    /// A text member of the data.
    #[must_use]
    pub fn text(&self, member: &str) -> Option<&str> {
        self.data.get(member)?.as_str()
    }
}

/// Every event since [`Qmp::subscribe`](super::Qmp::subscribe), in order, none left out.
///
/// The queue has no limit: read it, or drop it.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::UnboundedReceiver<Event>,
    shared: Arc<Shared>,
}

impl EventStream {
    pub(super) fn new(events: mpsc::UnboundedReceiver<Event>, shared: Arc<Shared>) -> Self {
        Self { events, shared }
    }

    /// The next event.
    ///
    /// # Errors
    /// [`QmpError::Closed`] once the connection has ended and all events before that were taken.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn recv(&mut self) -> Result<Event, QmpError> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => Err(self.shared.closed()),
        }
    }

    /// The next event, if one has arrived already.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// The first event that `wanted` accepts. Those before it are consumed: subscribe once more
    /// where they matter too.
    ///
    /// # Errors
    /// [`QmpError::EventDeadline`] when none came within `deadline`, [`QmpError::Closed`].
    ///
    /// # Cancel safety
    /// Cancel safe, except that events which were not wanted are gone.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&Event) -> bool,
        deadline: Duration,
    ) -> Result<Event, QmpError> {
        let search = async {
            loop {
                let event = self.recv().await?;
                if wanted(&event) {
                    return Ok(event);
                }
            }
        };
        match timeout(deadline, search).await {
            Ok(found) => found,
            Err(_elapsed) => Err(QmpError::EventDeadline { within: deadline }),
        }
    }
}
