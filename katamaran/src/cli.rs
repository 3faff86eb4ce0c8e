//! The command line as typed; [`crate::config`] turns it into something that can be run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::session_id::SessionId;

/// What the exit status tells a script; shown by `--help`.
const EXIT_STATUS: &str = "\
Exit status:
  0    success
  1    migration failed, the VM runs on the source, safe to retry
  2    bad usage or preflight, nothing was touched
  3    migrated, but zero-drop is not proven (with --require-zero-drop)
  4    undecided after COMMIT, an operator is needed
  5    done, but something was left behind (listed)
  130  interrupted and cleaned up";

/// The same for `katamaran preflight`.
const PREFLIGHT_STATUS: &str = "\
The flags are those of a migration, and none of them is needed: put `preflight` in front of the flags that you
would migrate with. Each adds to what is looked at. Without --mode, --dest-ip or --listen, the node is looked at as
a source and as a destination.

Each line is one of
  ok         nothing to do
  degraded   it works, at a cost that is told
  missing    it does not work; what to do is told
  unchecked  it could not be looked at; why is told

Exit status:
  0    nothing is missing
  2    something is missing, or bad usage; with --strict also if something is degraded or unchecked";

/// The same for `katamaran cleanup`.
const CLEANUP_STATUS: &str = "\
A migration that lives is never touched, and neither is one that is undecided: see `katamaran resolve`.

Exit status:
  0    nothing is left
  2    bad usage, or it could not be looked at
  5    something is left (listed)";

/// The same for `katamaran resolve`.
const RESOLVE_STATUS: &str = "\
Run it on the destination first, with nothing but the session: it says where the VM is, and what to run on the source. The
source changes nothing without the destination's receipt, so that the VM can't run twice.

Exit status:
  0    settled on this node
  2    bad usage, or refused; nothing was changed
  4    still undecided; what to run is said
  5    settled, but something was left behind (listed)";

/// Live-migrates a Kata Containers VM to another node and proves that no packet was lost.
///
/// Start `katamaran --mode dest` beside the incoming QEMU on the destination node, then
/// `katamaran --mode source` on the node that runs the VM.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub migrate: MigrateArgs,
}

/// Everything that is not a migration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a JSON report that --report wrote, as the summary a migration prints
    Report {
        /// The report file
        file: PathBuf,
    },
    /// Look whether a migration would work on this node, and change nothing
    #[command(after_help = PREFLIGHT_STATUS)]
    Preflight(Box<PreflightArgs>),
    /// Show which packets of a VM the kernel drops, where, and why (root)
    Trace(TraceArgs),
    /// Show the migrations of this node, living and dead
    Status {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what migrations left on this node whose katamaran died, or remove it
    #[command(after_help = CLEANUP_STATUS)]
    Cleanup(CleanupArgs),
    /// Settle a migration that is undecided: COMMIT was sent, and one node does not know what came of it
    #[command(after_help = RESOLVE_STATUS)]
    Resolve(ResolveArgs),
}

/// Flags of `katamaran cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Remove it; without this flag nothing is changed
    #[arg(long)]
    pub apply: bool,
    /// Only this session
    #[arg(long, value_name = "SESSION")]
    pub session: Option<SessionId>,
    /// Also forget the receipt that is kept for a source which may still ask for it
    #[arg(long, requires = "session")]
    pub forget: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `katamaran resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The session, as in `katamaran status`
    pub session: SessionId,
    /// On the destination: end its copy of the VM, which does not run, so that the source can resume its own
    #[arg(long, group = "answer")]
    pub discard: bool,
    /// On the destination: run its copy of the VM, for which COMMIT came
    #[arg(long, group = "answer")]
    pub run: bool,
    /// On the source: resume the VM; the receipt is what `resolve` printed on the destination
    #[arg(long, value_name = "RECEIPT", group = "answer")]
    pub destination_discarded: Option<String>,
    /// On the source: give up its stopped copy; the receipt is what `resolve` printed on the destination
    #[arg(long, value_name = "RECEIPT", group = "answer")]
    pub destination_runs: Option<String>,
}

/// Flags of `katamaran preflight`.
#[derive(Debug, Args)]
pub struct PreflightArgs {
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Exit with status 2 also when something is degraded or could not be looked at
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub migrate: MigrateArgs,
}

/// Flags of `katamaran trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Address(es) of the VM: packets to and from them are watched
    #[arg(long, value_name = "IP[,IP]", value_delimiter = ',', required = true)]
    pub vm_ip: Vec<String>,
    /// End after this many seconds (default: at Ctrl-C)
    #[arg(long, value_name = "S")]
    pub duration: Option<u64>,
    /// End after this many drops
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Write one JSON object a line (see docs/trace.md)
    #[arg(long)]
    pub json: bool,
    /// Log level: error, warn, info, debug, trace, or a filter such as katamaran=debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: String,
}

/// Flags of `katamaran --mode source|dest`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Which side this node is
    #[arg(long, value_name = "source|dest")]
    pub mode: Option<String>,
    /// QMP socket of the VM's QEMU on this node
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,
    /// Address(es) of the destination on the node network, one per family of the VM (source)
    #[arg(long, value_name = "IP[,IP]", value_delimiter = ',')]
    pub dest_ip: Vec<String>,
    /// Address(es) of the VM, IPv4 and/or IPv6 (source)
    #[arg(long, value_name = "IP[,IP]", value_delimiter = ',')]
    pub vm_ip: Vec<String>,
    /// The destination's one listening port
    #[arg(long, value_name = "N", default_value_t = 7482)]
    pub port: u16,
    /// Address to listen on (dest; default: all)
    #[arg(long, value_name = "IP")]
    pub listen: Option<String>,
    /// The VM's tap device (default: found through QEMU)
    #[arg(long, value_name = "DEV")]
    pub tap: Option<String>,
    /// Network namespace of the tap (default: QEMU's)
    #[arg(long, value_name = "PATH")]
    pub tap_netns: Option<PathBuf>,
    /// Device of the node where to hook the redirect (source; default: in a pod its own end of its veth, else the device that
    /// the route to the VM resolves to)
    #[arg(long, value_name = "DEV")]
    pub redirect_dev: Option<String>,
    /// Both nodes open the same volumes: do not mirror disks
    #[arg(long)]
    pub shared_storage: bool,
    /// Drives of which it can't be proven that both nodes have the same volume open: you know that they have (source)
    #[arg(
        long,
        value_name = "ID[,ID]",
        value_delimiter = ',',
        requires = "shared_storage"
    )]
    pub trust_shared_volume: Vec<String>,
    /// Drives of the VM, all that it can write to, by the id of the drive, node or device (default:
    /// drive-virtio-disk0)
    #[arg(long, value_name = "ID[,ID]", value_delimiter = ',')]
    pub drive_id: Vec<String>,
    /// Limit of the copy of all drives together, e.g. 200M (bytes per second); what the guest writes near
    /// the end is not limited (source; default: none)
    #[arg(long, value_name = "BYTES/S")]
    pub bandwidth: Option<String>,
    /// Give up when a drive has not been copied after this many seconds (source)
    #[arg(long, value_name = "S", default_value_t = 7200)]
    pub storage_sync_timeout: u64,
    /// Compare the drives of both nodes while the VM is stopped, block by block: a long pause (source)
    #[arg(long)]
    pub verify_storage: bool,
    /// How packets travel from source to destination (ipip: IPIP for v4, IP6IP6 for v6)
    #[arg(long, value_name = "auto|ipip|gre|vxlan|none", default_value = "auto")]
    pub tunnel_mode: String,
    /// The longest pause of the VM that is accepted, in milliseconds (source)
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pub downtime: u64,
    /// Take the VM back when it has stood still for this many milliseconds, whatever keeps it; not below --downtime, at most
    /// 600000 (source; default: what each step may take)
    #[arg(long, value_name = "MS")]
    pub pause_limit: Option<u64>,
    /// Give up when the VM has not moved after this many seconds, 30-3600: with --shared-storage since both nodes have its
    /// volumes open, else since its RAM is copied (source; default: 300 with --shared-storage, else 3600)
    #[arg(long, value_name = "S")]
    pub migration_timeout: Option<u64>,
    /// Let QEMU slow the guest down when its memory changes faster than it can be copied (source)
    #[arg(long)]
    pub auto_converge: bool,
    /// Number of multifd channels for RAM, 0 for one plain stream (source)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub multifd_channels: u8,
    /// Limit of the RAM copy, e.g. 500M (bytes per second) (source; default: none)
    #[arg(long, value_name = "BYTES/S")]
    pub max_bandwidth: Option<String>,
    /// Longest wait, in seconds, for the network to send the VM's packets to the destination by itself (source)
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub cni_convergence_delay: u64,
    /// Carry connection tracking entries of the VM's flows to the destination, so that connections that a node translates
    /// or filters by state survive (source)
    #[arg(long, value_name = "on|off", value_enum, default_value_t = Switch::On)]
    pub conntrack: Switch,
    /// What becomes of the stopped VM on the source once the destination runs it (source)
    #[arg(long, value_name = "quit|keep", value_enum, default_value_t = SourceVm::Quit)]
    pub source_vm: SourceVm,
    /// Write the JSON report here
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Serve Prometheus metrics at http://ADDR:PORT/metrics while running
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<String>,
    /// Add metrics to this *.prom file, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// Exit with status 3 unless the verdict is `proven`
    #[arg(long)]
    pub require_zero_drop: bool,
    /// Certificates for the session between the nodes (not implemented yet)
    #[arg(long, value_name = "DIR", conflicts_with = "insecure_plaintext")]
    pub tls_dir: Option<PathBuf>,
    /// Send the VM's memory and the session unencrypted and unauthenticated
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Format of the log on standard error
    #[arg(long, value_name = "text|json", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log level: error, warn, info, debug, trace, or a filter such as katamaran=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One human-readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// What becomes of the source's stopped VM after COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceVm {
    /// End its QEMU, so that nobody can resume a second copy.
    Quit,
    /// Leave it stopped.
    Keep,
}

/// Parses the command line. Long flags are also taken with one dash (`-dest-ip`), because
/// existing scripts write them so.
///
/// # Errors
/// clap's error, which carries the message, the stream and the exit status (2).
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(with_two_dashes(args))
}

/// Turns `-name` and `-name=value` into `--name...`. All our short flags are one letter, so an unknown
/// long flag with one dash is told by its full name, too. What follows `--` stays as it is.
fn with_two_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_end = false;
    args.into_iter()
        .map(|arg| {
            flags_end |= arg == "--";
            match arg.to_str().and_then(|text| text.strip_prefix('-')) {
                Some(name) if !flags_end && is_long(name) => format!("--{name}").into(),
                _ => arg,
            }
        })
        .collect()
}

/// Not one letter, not `-name` (two dashes already), not a negative number.
fn is_long(name: &str) -> bool {
    name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parsed(args: &[&str]) -> Result<Cli, clap::Error> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let cli = parsed(&[
            "katamaran",
            "-mode",
            "source",
            "-dest-ip=10.0.0.2",
            "-shared-storage",
        ])
        .unwrap();
        assert_eq!(cli.migrate.mode.as_deref(), Some("source"));
        assert_eq!(cli.migrate.dest_ip, ["10.0.0.2"]);
        assert!(cli.migrate.shared_storage);
    }

    #[test]
    fn an_unknown_flag_with_one_dash_is_told_by_its_full_name() {
        let error = parsed(&["katamaran", "-no-such"]).unwrap_err();
        assert!(error.to_string().contains("--no-such"), "{error}");
    }

    #[test]
    fn what_follows_two_dashes_alone_is_no_flag() {
        let cli = parsed(&["katamaran", "report", "--", "-my-report"]).unwrap();
        let Some(Command::Report { file }) = cli.command else {
            panic!("not a report")
        };
        assert_eq!(file, PathBuf::from("-my-report"));
    }

    #[test]
    fn positional_and_unknown_arguments_are_refused() {
        for args in [
            &["katamaran", "stray"][..],
            &["katamaran", "--mode", "source", "stray"],
            &["katamaran", "-no-such"],
        ] {
            assert_eq!(parsed(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
