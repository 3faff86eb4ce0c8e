//! Commands that stop, start and end the guest.

use serde::{Deserialize, Serialize};

use super::{Done, commands};
use crate::deadline;
use crate::open_enum::open_enum;

open_enum! {
    /// What the guest is doing.
    pub enum RunState {
        Colo = "colo",
        Debug = "debug",
        FinishMigrate = "finish-migrate",
        GuestPanicked = "guest-panicked",
        Inmigrate = "inmigrate",
        InternalError = "internal-error",
        IoError = "io-error",
        Paused = "paused",
        Postmigrate = "postmigrate",
        Prelaunch = "prelaunch",
        RestoreVm = "restore-vm",
        Running = "running",
        SaveVm = "save-vm",
        Shutdown = "shutdown",
        Suspended = "suspended",
        Watchdog = "watchdog",
    }
}

/// Asks whether the guest runs.
#[derive(Debug, Clone, Serialize)]
pub struct QueryStatus;

/// Whether the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether its processors run.
    pub running: bool,
    /// Why, or why not.
    pub status: RunState,
}

/// Stops the guest: when it is answered, the processors stand still and disk I/O is drained.
/// While QEMU waits for an incoming migration it clears the autostart.
#[derive(Debug, Clone, Serialize)]
pub struct Stop;

/// Runs the guest.
#[derive(Debug, Clone, Serialize)]
pub struct Cont;

/// Ends QEMU.
#[derive(Debug, Clone, Serialize)]
pub struct Quit;

/// Has the guest's network cards announce themselves (RARP, and the guest's own announcement
/// where its driver offers that). While the guest is stopped, the packets wait for it to run.
#[derive(Debug, Clone, Serialize)]
pub struct AnnounceSelf {
    /// Before the second round, in milliseconds.
    pub initial: u32,
    /// The longest pause between rounds, in milliseconds.
    pub max: u32,
    /// How many rounds; the first one is sent at once.
    pub rounds: u32,
    /// By how much each pause grows, in milliseconds.
    pub step: u32,
}

impl Default for AnnounceSelf {
    /// QEMU's own values.
    fn default() -> Self {
        Self {
            initial: 50,
            max: 550,
            rounds: 5,
            step: 100,
        }
    }
}

commands! {
    QueryStatus = "query-status", within deadline::QMP_QUICK => Status;
    Stop = "stop", within deadline::QMP_RUN_STATE => Done;
    Cont = "cont", within deadline::QMP_RUN_STATE => Done;
    Quit = "quit", within deadline::QMP_QUICK => Done;
    AnnounceSelf = "announce-self", within deadline::QMP_QUICK => Done;
}
