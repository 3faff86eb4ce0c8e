//! Queries about the machine: what QEMU can do and what it emulates.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::commands;
use crate::deadline;
use crate::qmp::QemuVersion;

/// Asks for QEMU's release.
#[derive(Debug, Clone, Serialize)]
pub struct QueryVersion;

/// Asks which commands this QEMU has.
#[derive(Debug, Clone, Serialize)]
pub struct QueryCommands;

/// A command that this QEMU has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CommandInfo {
    /// Its name on the wire.
    pub name: String,
}

/// Asks which machine types this QEMU can emulate; for the one that runs see
/// [`Qmp::machine_type`](crate::qmp::Qmp::machine_type).
#[derive(Debug, Clone, Serialize)]
pub struct QueryMachines;

/// A machine type.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MachineInfo {
    /// Its versioned name.
    pub name: String,
    /// The name without a version that stands for it, such as `q35`.
    pub alias: Option<String>,
    /// Whether it is the default.
    pub is_default: Option<bool>,
    /// The most processors it can have.
    pub cpu_max: Option<u64>,
    /// Whether it is to be removed in a later release.
    pub deprecated: Option<bool>,
}

/// Reads a property of an object.
#[derive(Debug, Clone, Serialize)]
pub struct QomGet {
    /// The object, such as `/machine`.
    pub path: String,
    /// The property.
    pub property: String,
}

/// Asks for the guest's processors.
#[derive(Debug, Clone, Serialize)]
pub struct QueryCpusFast;

/// A processor of the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfo {
    /// Its number.
    pub cpu_index: u64,
    /// Its object.
    pub qom_path: String,
    /// The host thread that runs it.
    pub thread_id: u64,
    /// The architecture emulated.
    pub target: Option<String>,
}

/// Asks for the guest's memory size.
#[derive(Debug, Clone, Serialize)]
pub struct QueryMemorySizeSummary;

/// The guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySize {
    /// From the start, in bytes.
    pub base_memory: u64,
    /// Plugged in since, in bytes.
    pub plugged_memory: Option<u64>,
}

impl MemorySize {
    /// All of it, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.base_memory
            .saturating_add(self.plugged_memory.unwrap_or(0))
    }
}

/// Asks which packets the guest's network cards accept. Cards that keep no such filter are left
/// out, or refused when asked for by name.
#[derive(Debug, Clone, Default, Serialize)]
pub struct QueryRxFilter {
    /// One card only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The receive filter of a network card.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RxFilter {
    /// The card.
    pub name: String,
    /// Its MAC address, as six hexadecimal pairs with colons.
    pub main_mac: String,
    /// Whether it accepts every packet.
    pub promiscuous: Option<bool>,
    /// Further unicast addresses.
    pub unicast_table: Option<Vec<String>>,
    /// Multicast addresses.
    pub multicast_table: Option<Vec<String>>,
}

/// A command of the human monitor; its answer is a text for people.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// The command.
    pub command_line: &'static str,
}

commands! {
    HumanMonitorCommand = "human-monitor-command", within deadline::QMP_QUICK => String;
    QueryVersion = "query-version", within deadline::QMP_QUICK => QemuVersion;
    QueryCommands = "query-commands", within deadline::QMP_QUICK => Vec<CommandInfo>;
    QueryMachines = "query-machines", within deadline::QMP_QUICK => Vec<MachineInfo>;
    QomGet = "qom-get", within deadline::QMP_QUICK => Value;
    QueryCpusFast = "query-cpus-fast", within deadline::QMP_QUICK => Vec<CpuInfo>;
    QueryMemorySizeSummary = "query-memory-size-summary", within deadline::QMP_QUICK => MemorySize;
    QueryRxFilter = "query-rx-filter", within deadline::QMP_QUICK => Vec<RxFilter>;
}
