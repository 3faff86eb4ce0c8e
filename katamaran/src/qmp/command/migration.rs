//! Commands about migration.

use serde::{Deserialize, Serialize};

use super::{Done, commands};
use crate::deadline;
use crate::open_enum::open_enum;

open_enum! {
    /// How far a migration is.
    pub enum MigrationStatus {
        Active = "active",
        Cancelled = "cancelled",
        Cancelling = "cancelling",
        Colo = "colo",
        Completed = "completed",
        Device = "device",
        Failed = "failed",
        None = "none",
        PostcopyActive = "postcopy-active",
        PostcopyPaused = "postcopy-paused",
        PostcopyRecover = "postcopy-recover",
        PreSwitchover = "pre-switchover",
        Setup = "setup",
        WaitUnplug = "wait-unplug",
    }
}

impl MigrationStatus {
    /// Whether nothing more will happen by itself.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Completed | Self::Failed)
    }
}

open_enum! {
    /// A switch of QEMU's migration.
    pub enum Capability {
        AutoConverge = "auto-converge",
        DirtyBitmaps = "dirty-bitmaps",
        DirtyLimit = "dirty-limit",
        Events = "events",
        LateBlockActivate = "late-block-activate",
        MappedRam = "mapped-ram",
        Multifd = "multifd",
        PauseBeforeSwitchover = "pause-before-switchover",
        PostcopyPreempt = "postcopy-preempt",
        PostcopyRam = "postcopy-ram",
        RdmaPinAll = "rdma-pin-all",
        ReleaseRam = "release-ram",
        ReturnPath = "return-path",
        SwitchoverAck = "switchover-ack",
        ValidateUuid = "validate-uuid",
        Xbzrle = "xbzrle",
        XColo = "x-colo",
        XIgnoreShared = "x-ignore-shared",
        ZeroBlocks = "zero-blocks",
        ZeroCopySend = "zero-copy-send",
    }
}

/// Asks how far the migration is. Both sides answer it.
#[derive(Debug, Clone, Serialize)]
pub struct QueryMigrate;

/// How far the migration is. Times are in milliseconds. Without any migration, all is `None`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// Its state.
    pub status: Option<MigrationStatus>,
    /// Memory; on the source only.
    pub ram: Option<RamProgress>,
    /// Disks, when QEMU itself migrates them.
    pub disk: Option<DiskProgress>,
    /// Since the start.
    pub total_time: Option<u64>,
    /// The pause as the source saw it; shorter than what the guest sees.
    pub downtime: Option<u64>,
    /// The pause that QEMU expects.
    pub expected_downtime: Option<u64>,
    /// Until the first page went out.
    pub setup_time: Option<u64>,
    /// How much the guest is slowed down, in percent.
    pub cpu_throttle_percentage: Option<u64>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Where an incoming migration is listened for.
    pub socket_address: Option<Vec<serde_json::Value>>,
    /// Why this guest cannot be migrated.
    pub blocked_reasons: Option<Vec<String>>,
}

/// What has been done about the guest's memory.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamProgress {
    /// Bytes sent.
    pub transferred: Option<u64>,
    /// Bytes that are still to be sent, by the last look at the dirty bitmap.
    pub remaining: Option<u64>,
    /// Bytes of memory.
    pub total: Option<u64>,
    /// Pages that were all zero.
    pub duplicate: Option<u64>,
    /// Pages that were sent whole.
    pub normal: Option<u64>,
    /// Bytes of these.
    pub normal_bytes: Option<u64>,
    /// Pages dirtied per second, by the last look.
    pub dirty_pages_rate: Option<u64>,
    /// How often the dirty bitmap was read; the passes.
    pub dirty_sync_count: Option<u64>,
    /// Throughput in megabits per second.
    pub mbps: Option<f64>,
    /// Bytes per page.
    pub page_size: Option<u64>,
    /// Pages sent per second.
    pub pages_per_second: Option<u64>,
    /// Bytes sent over multifd channels.
    pub multifd_bytes: Option<u64>,
    /// Bytes sent before the pause.
    pub precopy_bytes: Option<u64>,
    /// Bytes sent in the pause.
    pub downtime_bytes: Option<u64>,
}

/// What has been done about disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DiskProgress {
    /// Bytes sent.
    pub transferred: Option<u64>,
    /// Bytes to be sent.
    pub remaining: Option<u64>,
    /// Bytes of disks.
    pub total: Option<u64>,
}

/// Asks which switches are on; those that this QEMU does not have are missing from the reply.
#[derive(Debug, Clone, Serialize)]
pub struct QueryMigrateCapabilities;

/// Sets switches; the others stay. Both sides must agree on most of them.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateSetCapabilities {
    /// The switches to set.
    pub capabilities: Vec<CapabilityState>,
}

/// A switch and its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityState {
    /// Which one.
    pub capability: Capability,
    /// Whether it is on.
    pub state: bool,
}

impl MigrateSetCapabilities {
    /// Switches all of `capabilities` on.
    #[must_use]
    pub fn on(capabilities: impl IntoIterator<Item = Capability>) -> Self {
        let on = |capability| CapabilityState {
            capability,
            state: true,
        };
        Self {
            capabilities: capabilities.into_iter().map(on).collect(),
        }
    }
}

/// Asks for the parameters.
#[derive(Debug, Clone, Serialize)]
pub struct QueryMigrateParameters;

/// Sets the parameters that are not `None`. Allowed while a migration runs.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct MigrateSetParameters {
    /// The parameters.
    pub parameters: MigrationParameters,
}

impl From<MigrationParameters> for MigrateSetParameters {
    fn from(parameters: MigrationParameters) -> Self {
        Self { parameters }
    }
}

/// The parameters of migration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationParameters {
    /// The longest pause that QEMU may choose, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// The rate limit, in bytes per second. 0 means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// What QEMU assumes about the rate during the pause, in bytes per second (8.2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail_switchover_bandwidth: Option<u64>,
    /// How many connections multifd opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u64>,
    /// `none`, `zlib`, `zstd` and others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<String>,
    /// The first slow-down of auto-converge, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u64>,
    /// By how much it grows, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u64>,
    /// Its end, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu_throttle: Option<u64>,
    /// See [`AnnounceSelf`](super::AnnounceSelf); milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_initial: Option<u64>,
    /// See [`AnnounceSelf`](super::AnnounceSelf); milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_max: Option<u64>,
    /// See [`AnnounceSelf`](super::AnnounceSelf).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
    /// See [`AnnounceSelf`](super::AnnounceSelf); milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_step: Option<u64>,
    /// The id of QEMU's TLS credentials; empty means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// The host name to verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
}

/// Starts sending the guest to `uri`, such as `unix:/run/x.sock`. The reply means that it has
/// started, no more.
#[derive(Debug, Clone, Serialize)]
pub struct Migrate {
    /// Where to.
    pub uri: String,
}

/// Starts listening at `uri`, in a QEMU started with `-incoming defer`.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateIncoming {
    /// Where.
    pub uri: String,
}

/// Cancels the migration, if there is one; it is over when its status says so. A guest that QEMU
/// had stopped for the switch-over runs again by itself, one stopped by [`Stop`](super::Stop) does
/// not.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateCancel;

/// Lets a paused migration go on.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateContinue {
    /// The state it must be paused in: `PreSwitchover`.
    pub state: MigrationStatus,
}

impl Default for MigrateContinue {
    fn default() -> Self {
        Self {
            state: MigrationStatus::PreSwitchover,
        }
    }
}

commands! {
    QueryMigrate = "query-migrate", within deadline::QMP_QUICK => MigrationInfo;
    QueryMigrateCapabilities = "query-migrate-capabilities",
        within deadline::QMP_QUICK => Vec<CapabilityState>;
    MigrateSetCapabilities = "migrate-set-capabilities", within deadline::QMP_QUICK => Done;
    QueryMigrateParameters = "query-migrate-parameters",
        within deadline::QMP_QUICK => MigrationParameters;
    MigrateSetParameters = "migrate-set-parameters", within deadline::QMP_QUICK => Done;
    Migrate = "migrate", within deadline::QMP_MIGRATION => Done;
    MigrateIncoming = "migrate-incoming", within deadline::QMP_MIGRATION => Done;
    MigrateCancel = "migrate_cancel", within deadline::QMP_MIGRATION => Done;
    MigrateContinue = "migrate-continue", within deadline::QMP_MIGRATION => Done;
}
