//! The commands: one type each, with the type of its reply and its deadline.
//!
//! A command without arguments is a unit struct. Replies name what this crate uses and skip the
//! rest; what not every QEMU from 6.2 on reports is an `Option`.

mod block;
mod job;
mod machine;
mod migration;
mod nbd;
mod run;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use block::{
    BlockInfo, BlockNodeInfo, BlockdevAddNbd, BlockdevDel, PassedSocket, QueryBlock,
    QueryNamedBlockNodes, Yank,
};
pub use job::{
    BlockJobCancel, BlockJobChange, BlockJobInfo, BlockJobSetSpeed, BlockdevMirror, CopyMode,
    IoStatus, JobDismiss, JobStatus, MirrorSync, QueryBlockJobs,
};
pub use machine::{
    CommandInfo, CpuInfo, HumanMonitorCommand, MachineInfo, MemorySize, QomGet, QueryCommands,
    QueryCpusFast, QueryMachines, QueryMemorySizeSummary, QueryRxFilter, QueryVersion, RxFilter,
};
pub use migration::{
    Capability, CapabilityState, DiskProgress, Migrate, MigrateCancel, MigrateContinue,
    MigrateIncoming, MigrateSetCapabilities, MigrateSetParameters, MigrationInfo,
    MigrationParameters, MigrationStatus, QueryMigrate, QueryMigrateCapabilities,
    QueryMigrateParameters, RamProgress,
};
pub use nbd::{
    BlockExportAdd, BlockExportDel, BlockExportInfo, NbdServerStart, NbdServerStop,
    QueryBlockExports, ServerAddress,
};
pub use run::{AnnounceSelf, Cont, QueryStatus, Quit, RunState, Status, Stop};

use crate::deadline;

/// A QMP command. The value serialises to its arguments; a unit struct has none.
pub trait Command: Serialize + Send + Sync {
    /// The name on the wire.
    const NAME: &'static str;
    /// How long QEMU may take to answer.
    const DEADLINE: Duration;
    /// What QEMU returns.
    type Reply: DeserializeOwned + Send;
}

/// The reply of commands that return nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Done {}

/// Ends the negotiation phase of a connection.
#[derive(Debug, Clone, Serialize)]
pub(super) struct QmpCapabilities;

/// Gives a descriptor a name. It comes along with the command.
#[derive(Debug, Clone, Serialize)]
pub(super) struct GetFd {
    pub(super) fdname: String,
}

/// Implements [`Command`] for types: `Type = "name", within DEADLINE -> Reply;`.
macro_rules! commands {
    ($( $type:ty = $name:literal, within $deadline:expr => $reply:ty; )*) => {
        $(
            impl $crate::qmp::Command for $type {
                const NAME: &'static str = $name;
                const DEADLINE: std::time::Duration = $deadline;
                type Reply = $reply;
            }
        )*
    };
}
use commands;

commands! {
    QmpCapabilities = "qmp_capabilities", within deadline::QMP_CONNECT => Done;
    GetFd = "getfd", within deadline::QMP_QUICK => Done;
}
