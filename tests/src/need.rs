//! What a test needs of the machine, and whether it is there.
//!
//! A test whose needs are not met prints `SKIP name: reason` and passes, unless `KATAMARAN_REQUIRE`
//! (a comma-separated list: `root`, `lab`) says that the machine is meant to have it.

use std::path::PathBuf;
use std::process::Command;

use crate::lab::{GuestImage, Kernel, cache_dir};

/// One thing that a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// User id 0, with all capabilities.
    Root,
    /// A katamaran with the eBPF programs in it.
    Bpf,
    /// What `scripts/setup.sh lab` installs: both QEMUs and two kernels.
    Lab,
    /// `promtool` and node_exporter, which `scripts/setup.sh lab` unpacks, too.
    Prometheus,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Bpf => "bpf",
            Self::Lab => "qemu",
            Self::Prometheus => "prometheus",
        }
    }

    /// Why it is not met, if it is not.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root if nix::unistd::geteuid().is_root() => None,
            Self::Root => Some("not root".to_owned()),
            Self::Bpf => katamaran::ebpf::object_state()
                .err()
                .map(|err| err.to_string()),
            Self::Lab if !cache_dir().join("qemu-10.0/.complete").exists() => {
                Some("no QEMU 10.0: run scripts/setup.sh lab".to_owned())
            }
            Self::Lab => Kernel::ALL
                .iter()
                .find_map(|kernel| kernel.modules().err())
                .or_else(|| GuestImage::prepare().err())
                .map(|err| format!("{err:#}")),
            Self::Prometheus if !prometheus_dir().join(".complete").exists() => {
                Some("no promtool: run scripts/setup.sh lab".to_owned())
            }
            Self::Prometheus => None,
        }
    }
}

/// Prometheus' `promtool`, without arguments.
#[must_use]
pub fn promtool() -> Command {
    Command::new(prometheus_dir().join("usr/bin/promtool"))
}

/// node_exporter, without arguments.
#[must_use]
pub fn node_exporter() -> Command {
    Command::new(prometheus_dir().join("usr/bin/prometheus-node-exporter"))
}

fn prometheus_dir() -> PathBuf {
    cache_dir().join("prometheus")
}

/// Whether the test may run; if not, says so on standard output.
///
/// # Panics
///
/// When a need is not met that `KATAMARAN_REQUIRE` names.
#[must_use]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub fn met(test: &str, needs: &[Need]) -> bool {
    let required = std::env::var("KATAMARAN_REQUIRE").unwrap_or_default();
    for need in needs {
        if let Some(reason) = need.missing() {
            let name = need.name();
            assert!(
                !required.split(',').any(|word| word == name),
                "{test} needs {name}, which is required here: {reason}"
            );
            println!("SKIP {test}: {reason}");
            return false;
        }
    }
    true
}
