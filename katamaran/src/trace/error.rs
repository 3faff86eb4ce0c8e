//! What can go wrong with a trace.

use crate::ebpf::{EbpfError, WitnessMissing};

/// Why there is no trace, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The kernel does not tell us of its drops.
    #[error(
        "watch the kernel's drops (needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, and Linux 5.17 with BTF)"
    )]
    Start(#[source] WitnessMissing),
    /// The program's maps can't be read, or it can't be taken off.
    #[error("read what the kernel dropped")]
    Kernel(#[from] EbpfError),
    /// The events can't be waited for.
    #[error("wait for events")]
    Wait(#[source] std::io::Error),
    /// The result can't be written.
    #[error("write to standard output")]
    Write(#[source] std::io::Error),
}

impl TraceError {
    /// Whether nothing was started.
    #[must_use]
    pub fn nothing_was_touched(&self) -> bool {
        matches!(self, Self::Start(_))
    }

    /// Whether only the reader of the output is gone.
    pub(super) fn nobody_reads(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}
