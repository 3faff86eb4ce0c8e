//! Validated settings. Nothing here touches the machine: what is wrong with a command line is
//! known before the first socket is opened.

mod address;
mod metrics;
mod preflight;
mod trace;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::{MigrateArgs, SourceVm, Switch};

use address::{Family, address, addresses};

pub use metrics::MetricsConfig;
pub use preflight::PreflightConfig;
pub use trace::TraceConfig;

/// Range of `--downtime`: below 1 ms QEMU cannot be told apart from "never", above 60 s a
/// migration is not live.
const DOWNTIME_MS: std::ops::RangeInclusive<u64> = 1..=60_000;
/// The end of the range of `--pause-limit`, which begins at `--downtime`.
const PAUSE_LIMIT_MAX_MS: u64 = 600_000;
/// Range of `--migration-timeout` in seconds, and what it is if not given: a volume that both nodes have open
/// is given less time.
const MIGRATION_TIMEOUT: std::ops::RangeInclusive<u64> = 30..=3600;
const SHARED_TIMEOUT: u64 = 300;
/// Range of `--storage-sync-timeout` in seconds: up to a week.
const STORAGE_SYNC_TIMEOUT: std::ops::RangeInclusive<u64> = 1..=604_800;
/// Range of `--cni-convergence-delay` in seconds.
const CNI_CONVERGENCE_DELAY: std::ops::RangeInclusive<u64> = 0..=3600;
/// The longest path that a unix socket can be connected at: `sun_path` has 108 bytes, the last is 0.
const SOCKET_PATH: usize = 107;
/// More channels than QEMU accepts (`multifd-channels` is a u8) or than help.
const MULTIFD_MAX: u8 = 64;

/// How packets travel from the source to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelMode {
    /// `Ipip` where every packet of the VM fits the path MTU with its outer header, else `Vxlan`.
    Auto,
    /// Encapsulated by the eBPF program: IPIP for IPv4, IP6IP6 for IPv6.
    Ipip,
    /// The same with a GRE header, for networks that carry no IP protocol 4 or 41.
    Gre,
    /// The kernel's vxlan device, which may fragment its outer header.
    Vxlan,
    /// No redirect: packets that reach the source after the VM stopped are lost, and said to be.
    None,
}

/// One side of a migration, ready to run.
#[derive(Debug, Clone)]
pub enum Config {
    Source(Box<SourceConfig>),
    Destination(Box<DestinationConfig>),
}

/// What both sides know.
#[derive(Debug, Clone)]
pub struct CommonConfig {
    pub qmp: PathBuf,
    pub port: u16,
    pub tap: Option<String>,
    pub tap_netns: Option<PathBuf>,
    /// Both nodes open the same volumes: nothing is mirrored.
    pub shared_storage: bool,
    /// The drives that were named, without duplicates; `None` when nothing was.
    pub drive_ids: Option<Vec<String>>,
    pub tunnel: TunnelMode,
    pub report: Option<PathBuf>,
    pub require_zero_drop: bool,
    pub metrics: MetricsConfig,
}

/// The node that runs the VM.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    pub common: CommonConfig,
    /// Canonical, without duplicates, at most one per family.
    pub dest_ips: Vec<IpAddr>,
    /// Canonical, without duplicates.
    pub vm_ips: Vec<IpAddr>,
    pub redirect_dev: Option<String>,
    pub downtime: Duration,
    /// So long the VM may stand still before it is taken back.
    pub pause_limit: Option<Duration>,
    pub migration_timeout: Duration,
    /// Drives that the user vouches for.
    pub trusted_volumes: Vec<String>,
    pub auto_converge: bool,
    pub multifd_channels: u8,
    /// Bytes per second.
    pub max_bandwidth: Option<u64>,
    /// Of the background copy of all drives, in bytes per second.
    pub disk_bandwidth: Option<u64>,
    pub storage_sync_timeout: Duration,
    pub verify_storage: bool,
    pub linger_limit: Duration,
    /// Connection tracking entries are carried.
    pub conntrack: bool,
    pub source_vm: SourceVm,
}

/// The node that will run the VM.
#[derive(Debug, Clone)]
pub struct DestinationConfig {
    pub common: CommonConfig,
    pub listen: Option<IpAddr>,
}

/// All that is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub struct UsageError {
    problems: Vec<String>,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\nerror: "))
    }
}

impl Config {
    /// What both sides know.
    #[must_use]
    pub fn common(&self) -> &CommonConfig {
        match self {
            Self::Source(config) => &config.common,
            Self::Destination(config) => &config.common,
        }
    }

    /// Checks what was typed.
    ///
    /// # Errors
    /// Everything that is wrong, in one error.
    pub fn from_args(args: &MigrateArgs) -> Result<Self, UsageError> {
        let mut problems = Vec::new();
        let config = match args.mode.as_deref() {
            Some("source") => {
                source(args, Needed::All, &mut problems).map(|c| Self::Source(Box::new(c)))
            }
            Some("dest") => destination(args, Needed::All, &mut problems)
                .map(|c| Self::Destination(Box::new(c))),
            Some(other) => {
                problems.push(invalid_mode(other));
                None
            }
            None => {
                problems.push("--mode is missing: source on the node that runs the VM, dest on the one that will".into());
                None
            }
        };
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(UsageError { problems }),
        }
    }
}

fn invalid_mode(mode: &str) -> String {
    format!("invalid --mode {mode:?}: it is source or dest")
}

/// Whether what a migration can't do without has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needed {
    All,
    /// Only what is given is looked at.
    Nothing,
}

fn source(args: &MigrateArgs, needed: Needed, problems: &mut Vec<String>) -> Option<SourceConfig> {
    let common = common(args, needed, problems);
    let dest_ips = addresses(
        "--dest-ip",
        "the destination's address on the node network",
        &args.dest_ip,
        needed,
        problems,
    );
    let vm_ips = addresses("--vm-ip", "the VM's address", &args.vm_ip, needed, problems);
    for family in [Family::V4, Family::V6] {
        let vm = vm_ips.iter().find(|ip| Family::of(ip) == family);
        let dests = dest_ips
            .iter()
            .filter(|ip| Family::of(ip) == family)
            .count();
        if dests > 1 {
            problems.push(format!(
                "--dest-ip has {dests} {family} addresses: give one per family"
            ));
        }
        if let (Some(vm), 0, false) = (vm, dests, dest_ips.is_empty()) {
            problems.push(format!(
                "mixed address families: the VM has {family} address {vm}, but --dest-ip has none to carry it; \
                 add the destination's {family} address to --dest-ip"
            ));
        }
    }
    for ip in dest_ips.iter().filter(|ip| vm_ips.contains(ip)) {
        problems.push(format!(
            "{ip} is in both --dest-ip and --vm-ip: --dest-ip is the other node's own address, --vm-ip the VM's"
        ));
    }
    if args.listen.is_some() {
        problems.push("--listen belongs to --mode dest".into());
    }
    if !DOWNTIME_MS.contains(&args.downtime) {
        problems.push(format!(
            "--downtime {} is out of range: {}-{} ms",
            args.downtime,
            DOWNTIME_MS.start(),
            DOWNTIME_MS.end()
        ));
    }
    if let Some(limit) = args.pause_limit
        && !(args.downtime..=PAUSE_LIMIT_MAX_MS).contains(&limit)
    {
        problems.push(format!(
            "--pause-limit {limit} is out of range: from --downtime ({}) to {PAUSE_LIMIT_MAX_MS} ms",
            args.downtime
        ));
    }
    if args.multifd_channels > MULTIFD_MAX {
        problems.push(format!(
            "--multifd-channels {} is out of range: 0-{MULTIFD_MAX}",
            args.multifd_channels
        ));
    }
    let migration_timeout = args.migration_timeout.unwrap_or(if args.shared_storage {
        SHARED_TIMEOUT
    } else {
        *MIGRATION_TIMEOUT.end()
    });
    if !MIGRATION_TIMEOUT.contains(&migration_timeout) {
        problems.push(format!(
            "--migration-timeout {migration_timeout} is out of range: {}-{} seconds",
            MIGRATION_TIMEOUT.start(),
            MIGRATION_TIMEOUT.end()
        ));
    }
    for (flag, seconds, range) in [
        (
            "--storage-sync-timeout",
            args.storage_sync_timeout,
            STORAGE_SYNC_TIMEOUT,
        ),
        (
            "--cni-convergence-delay",
            args.cni_convergence_delay,
            CNI_CONVERGENCE_DELAY,
        ),
    ] {
        if !range.contains(&seconds) {
            problems.push(format!(
                "{flag} {seconds} is out of range: {}-{} seconds",
                range.start(),
                range.end()
            ));
        }
    }
    if args.shared_storage {
        for (flag, given) in [
            ("--bandwidth", args.bandwidth.is_some()),
            ("--verify-storage", args.verify_storage),
        ] {
            if given {
                problems.push(format!(
                    "{flag} is about drives that are mirrored, and with --shared-storage none is"
                ));
            }
        }
    }
    let max_bandwidth = rate("--max-bandwidth", args.max_bandwidth.as_deref(), problems);
    let disk_bandwidth = rate("--bandwidth", args.bandwidth.as_deref(), problems);
    Some(SourceConfig {
        common: common?,
        dest_ips,
        vm_ips,
        redirect_dev: device_name("--redirect-dev", args.redirect_dev.as_deref(), problems),
        downtime: Duration::from_millis(args.downtime),
        pause_limit: args.pause_limit.map(Duration::from_millis),
        migration_timeout: Duration::from_secs(migration_timeout),
        trusted_volumes: args.trust_shared_volume.clone(),
        auto_converge: args.auto_converge,
        multifd_channels: args.multifd_channels,
        max_bandwidth,
        disk_bandwidth,
        storage_sync_timeout: Duration::from_secs(args.storage_sync_timeout),
        verify_storage: args.verify_storage,
        linger_limit: Duration::from_secs(args.cni_convergence_delay),
        conntrack: args.conntrack == Switch::On,
        source_vm: args.source_vm,
    })
}

fn destination(
    args: &MigrateArgs,
    needed: Needed,
    problems: &mut Vec<String>,
) -> Option<DestinationConfig> {
    let common = common(args, needed, problems);
    for (flag, given) in [
        ("--dest-ip", !args.dest_ip.is_empty()),
        ("--vm-ip", !args.vm_ip.is_empty()),
        ("--redirect-dev", args.redirect_dev.is_some()),
        ("--max-bandwidth", args.max_bandwidth.is_some()),
        ("--bandwidth", args.bandwidth.is_some()),
        ("--verify-storage", args.verify_storage),
        ("--auto-converge", args.auto_converge),
        ("--conntrack off", args.conntrack == Switch::Off),
        ("--pause-limit", args.pause_limit.is_some()),
        ("--migration-timeout", args.migration_timeout.is_some()),
        (
            "--trust-shared-volume",
            !args.trust_shared_volume.is_empty(),
        ),
    ] {
        if given {
            problems.push(format!(
                "{flag} belongs to --mode source: the destination learns it from there"
            ));
        }
    }
    let listen = args
        .listen
        .as_deref()
        .and_then(|text| address("--listen", text, problems));
    if let Some(problem) = listen.and_then(address::of_many) {
        problems.push(format!("--listen {problem}, not one of this node"));
    }
    Some(DestinationConfig {
        common: common?,
        listen,
    })
}

fn common(args: &MigrateArgs, needed: Needed, problems: &mut Vec<String>) -> Option<CommonConfig> {
    let all = needed == Needed::All;
    if all && args.qmp.is_none() {
        problems.push("--qmp is missing: the QMP socket of the VM's QEMU on this node".into());
    }
    if let Some(path) = &args.qmp {
        problems.extend(socket_path("--qmp", path));
    }
    if args.port == 0 {
        problems.push("--port 0: give the destination's listening port".into());
    }
    if args.tls_dir.is_some() {
        problems.push("--tls-dir is not implemented yet: the session can only be run with --insecure-plaintext".into());
    } else if all && !args.insecure_plaintext {
        problems.push(
            "the session would be neither encrypted nor authenticated, and carries the VM's memory: \
             pass --insecure-plaintext if the node network is trusted"
                .into(),
        );
    }
    let tunnel = match args.tunnel_mode.as_str() {
        "auto" => TunnelMode::Auto,
        "ipip" => TunnelMode::Ipip,
        "vxlan" => TunnelMode::Vxlan,
        "none" => TunnelMode::None,
        "gre" => TunnelMode::Gre,
        other => {
            problems.push(format!(
                "invalid --tunnel-mode {other:?}: it is auto, ipip, gre, vxlan or none"
            ));
            TunnelMode::Auto
        }
    };
    Some(CommonConfig {
        qmp: match needed {
            Needed::All => args.qmp.clone()?,
            Needed::Nothing => args.qmp.clone().unwrap_or_default(),
        },
        port: args.port,
        tap: device_name("--tap", args.tap.as_deref(), problems),
        tap_netns: args.tap_netns.clone(),
        shared_storage: args.shared_storage,
        drive_ids: drive_ids(&args.drive_id, problems),
        tunnel,
        report: args.report.clone(),
        require_zero_drop: args.require_zero_drop,
        metrics: MetricsConfig::from_args(args, problems),
    })
}

/// What is wrong with the path of a socket.
fn socket_path(flag: &str, path: &Path) -> Option<String> {
    let length = path.as_os_str().len();
    (length > SOCKET_PATH).then(|| {
        format!(
            "{flag} {} has {length} bytes, and a socket's path {SOCKET_PATH} at most: name it by a shorter one, \
             such as a symbolic link to its directory",
            path.display()
        )
    })
}

/// The kernel's rules for a device name (`dev_valid_name()`, net/core/dev.c; IFNAMSIZ is 16).
fn device_name(flag: &str, name: Option<&str>, problems: &mut Vec<String>) -> Option<String> {
    let name = name?;
    let valid = !name.is_empty()
        && name.len() <= 15
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
    if !valid {
        problems.push(format!(
            "{flag} {name:?} is not a device name (1-15 characters, no '/', ':' or space)"
        ));
    }
    Some(name.to_owned())
}

/// The drives that were named.
fn drive_ids(named: &[String], problems: &mut Vec<String>) -> Option<Vec<String>> {
    let mut ids: Vec<String> = Vec::new();
    for id in named.iter().map(|id| id.trim()) {
        if id.is_empty() {
            problems.push("--drive-id has an empty name: give the drives' ids".into());
        } else if ids.iter().any(|known| known == id) {
            problems.push(format!("--drive-id has {id} twice"));
        } else {
            ids.push(id.to_owned());
        }
    }
    (!ids.is_empty()).then_some(ids)
}

fn rate(flag: &str, text: Option<&str>, problems: &mut Vec<String>) -> Option<u64> {
    let text = text?;
    let rate = bytes_per_second(text);
    if rate.is_none() {
        problems.push(format!(
            "{flag} {text:?} is not a number of bytes per second, such as 500M or 1G"
        ));
    }
    rate
}

/// `500M`, `1G`, `1048576`: bytes per second, binary multiples.
fn bytes_per_second(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    };
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(factor)
        // QEMU's own limit, of signed numbers.
        .filter(|rate| *rate > 0 && i64::try_from(*rate).is_ok())
}

#[cfg(test)]
mod drive_tests;

#[cfg(test)]
mod tests;
