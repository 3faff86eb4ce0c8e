//! What can go wrong with a drive that is mirrored. Each message names the job and the drive, says on which
//! side it happened, and what to do about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::deadline;
use crate::nbd::NbdError;
use crate::qmp::QmpError;

/// A drive and the job that mirrors it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrored {
    /// As the user names it.
    pub drive: String,
    /// The job's id in the source's QEMU.
    pub job: String,
}

impl fmt::Display for Mirrored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block job {} of drive {}", self.job, self.drive)
    }
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// A drive could not be mirrored, handed over or compared.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// QEMU took the command, and no job came of it.
    #[error(
        "{job} did not appear within {} s: QEMU took blockdev-mirror and runs no such job; look into the log of the \
         source's QEMU",
        deadline::JOB_APPEARS.as_secs()
    )]
    DidNotAppear { job: Mirrored },

    /// It was there, and is not any more.
    #[error(
        "{job} disappeared unexpectedly: something else on the source dismissed it; keep other managers away from this \
         QEMU's block jobs while it is migrated"
    )]
    Disappeared { job: Mirrored },

    /// It is over without an error, and nobody here has ended it.
    #[error(
        "{job} ended in state {state} {}: something else on the source ended it; keep other managers away from this \
         QEMU's block jobs while it is migrated",
        if *.ready { "before the hand-over" } else { "without ever being ready" }
    )]
    Ended {
        job: Mirrored,
        state: String,
        ready: bool,
    },

    /// It is over, and somebody cancelled it.
    #[error(
        "{job} ended in state {state} {}: it was cancelled by something else on the source ({reason})",
        if *.ready { "before the hand-over" } else { "without ever being ready" }
    )]
    Cancelled {
        job: Mirrored,
        state: String,
        ready: bool,
        reason: String,
    },

    /// It has met an error, and is paused or over.
    #[error(
        "{job} failed in state {state} {}: {}: {reason}; {}",
        if *.ready { "after it had been ready" } else { "without ever being ready" },
        place(*.side),
        advice(*.side, .reason)
    )]
    Io {
        job: Mirrored,
        state: String,
        ready: bool,
        /// Where, as far as QEMU tells it.
        side: Option<Side>,
        reason: String,
    },

    /// The copy takes too long.
    #[error(
        "{job} timed out: not ready after {} s, {percent} % copied; raise --storage-sync-timeout or --bandwidth, or \
         retry when the drive is written less",
        .after.as_secs()
    )]
    TimedOut {
        job: Mirrored,
        after: Duration,
        percent: u64,
    },

    /// What QEMU writes to does not get to the destination any more.
    #[error(
        "{job}: the path to the destination's drive broke ({reason}); look whether the destination's katamaran and QEMU \
         are alive and the network between the nodes works"
    )]
    PathBroken { job: Mirrored, reason: String },

    /// Nothing gets over any more, and nothing says why.
    #[error(
        "{job} is stuck: {bytes} bytes wait to be written to the destination and none was in {} s; its disk or the path \
         to it hangs (the guest's writes waited for it: that is over now)",
        deadline::JOB_STALL.as_secs()
    )]
    Stalled { job: Mirrored, bytes: u64 },

    /// The last writes do not get over.
    #[error(
        "{job} did not {what} within {} s; the destination's disk or the path to it is too slow or stuck",
        .within.as_secs()
    )]
    Slow {
        job: Mirrored,
        what: &'static str,
        within: Duration,
    },

    /// It ended well, and yet something is missing.
    #[error("{job} ended with {bytes} bytes not copied: the destination's drive is not complete")]
    Behind { job: Mirrored, bytes: u64 },

    /// QEMU refused a step.
    #[error("drive {drive}: {doing} on the {side}")]
    Qemu {
        drive: String,
        doing: &'static str,
        side: Side,
        source: Arc<QmpError>,
    },

    /// The drive could not be read for the comparison.
    #[error("drive {drive}: read it on the {side} to compare it")]
    Compare {
        drive: String,
        side: Side,
        source: Arc<NbdError>,
    },

    /// The two drives are not equal.
    #[error(
        "drive {drive} is not the same on both nodes: {blocks} blocks of 1 MiB differ, at offsets {}{}; the source's is \
         the good one and stays in use; something else wrote to the destination's, or this is a fault worth a report",
        .offsets.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        if *.blocks > .offsets.len() { ", ..." } else { "" }
    )]
    Differs {
        drive: String,
        blocks: usize,
        /// The first of them, in bytes.
        offsets: Vec<u64>,
    },

    /// QEMU's NBD server does not do as it should.
    #[error("NBD server of the {side}'s QEMU: {doing}")]
    Server {
        side: Side,
        doing: &'static str,
        source: Arc<QmpError>,
    },

    /// The QEMU that runs the jobs can't be asked about them.
    #[error("watch the drives' block jobs on the source")]
    Watch { source: Arc<QmpError> },

    /// Somebody else's export is in the way.
    #[error(
        "QEMU on the {side} exports {exports} over NBD for somebody else: remove these exports (block-export-del), \
         its one NBD server is needed"
    )]
    ServerInUse { side: Side, exports: String },
}

impl StorageError {
    /// The user's time for the copy was over.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }

    /// Whether the cause may well lie on the other node, which knows better.
    #[must_use]
    pub fn may_be_a_symptom(&self) -> bool {
        match self {
            Self::PathBroken { .. } | Self::Slow { .. } | Self::Stalled { .. } => true,
            Self::Io { side, .. } => *side != Some(Side::Source),
            // QEMU answers nothing while it waits for a destination's drive that is gone.
            Self::Qemu { source, .. } => source.is_timeout(),
            _ => false,
        }
    }

    /// The same drive, with what the other node says about it.
    #[must_use]
    pub fn because(self, cause: &str) -> Self {
        let reason = cause.to_owned();
        match self {
            Self::PathBroken { job, .. } | Self::Slow { job, .. } | Self::Stalled { job, .. } => {
                Self::PathBroken { job, reason }
            }
            Self::Qemu { drive, .. } => Self::PathBroken {
                job: Mirrored {
                    job: super::qemu_id(&drive),
                    drive,
                },
                reason,
            },
            Self::Io {
                job,
                state,
                ready,
                side,
                reason,
            } => Self::Io {
                job,
                state,
                ready,
                side,
                reason: format!("{reason} ({cause})"),
            },
            other => other,
        }
    }
}

fn place(side: Option<Side>) -> &'static str {
    match side {
        Some(Side::Source) => "the drive could not be read on the source",
        Some(Side::Destination) => "the drive could not be written on the destination",
        None => "the drive could not be copied (QEMU did not say on which side)",
    }
}

/// What to do, by the system's own words for the error.
fn advice(side: Option<Side>, reason: &str) -> &'static str {
    let says = |words: &str| reason.contains(words);
    if side == Some(Side::Source) {
        return "look at the source's disk and the kernel's log there: the drive can't be copied before it can be read";
    }
    if says("No space left") || says("Disk quota exceeded") {
        "make room where the destination keeps this drive, then retry"
    } else if says("Operation not permitted") {
        "start the destination's QEMU with the drive's format (format=raw): where QEMU guesses it, it refuses writes to \
         the first block"
    } else {
        "look at the destination's disk and the kernel's log there, then retry"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Mirrored {
        Mirrored {
            drive: "disk0".into(),
            job: "katamaran-disk0".into(),
        }
    }

    fn io(side: Option<Side>, reason: &str, ready: bool) -> String {
        StorageError::Io {
            job: job(),
            state: "concluded".into(),
            ready,
            side,
            reason: reason.into(),
        }
        .to_string()
    }

    #[track_caller]
    fn says(text: &str, words: &[&str]) {
        for words in words.iter().chain(&["katamaran-disk0", "drive disk0"]) {
            assert!(text.contains(words), "{words:?} is not in {text:?}");
        }
    }

    #[test]
    fn the_words_that_operators_look_for_are_there() {
        let (job_, job) = (job(), job());
        says(
            &StorageError::Disappeared { job: job.clone() }.to_string(),
            &["disappeared unexpectedly"],
        );
        says(
            &StorageError::DidNotAppear { job: job.clone() }.to_string(),
            &["did not appear within 30 s"],
        );
        for (state, ready, words) in [
            ("concluded", false, "without ever being ready"),
            ("null", false, "without ever being ready"),
            ("concluded", true, "before the hand-over"),
        ] {
            let ended = StorageError::Ended {
                job: job.clone(),
                state: state.into(),
                ready,
            };
            says(
                &ended.to_string(),
                &[&format!("ended in state {state}"), words],
            );
        }
        let timed_out = StorageError::TimedOut {
            job,
            after: Duration::from_secs(7200),
            percent: 37,
        };
        says(
            &timed_out.to_string(),
            &["timed out", "7200 s", "37 %", "--storage-sync-timeout"],
        );
        let broken = StorageError::PathBroken {
            job: job_,
            reason: "reset".into(),
        };
        says(&broken.to_string(), &["path", "broke", "reset"]);
        let stalled = StorageError::Stalled {
            job: self::job(),
            bytes: 4096,
        };
        says(&stalled.to_string(), &["stuck", "4096 bytes", "20 s"]);
    }

    #[test]
    fn what_the_other_node_says_does_not_hide_the_drive() {
        let broken = StorageError::PathBroken {
            job: job(),
            reason: "reset".into(),
        };
        says(
            &broken.because("its QEMU is gone").to_string(),
            &["its QEMU is gone"],
        );
        let failed = StorageError::Io {
            job: job(),
            state: "concluded".into(),
            ready: true,
            side: Some(Side::Destination),
            reason: "Input/output error".into(),
        };
        says(
            &failed.because("its QEMU is gone").to_string(),
            &["Input/output error", "its QEMU is gone"],
        );
    }

    #[test]
    fn a_difference_says_where() {
        let differs = StorageError::Differs {
            drive: "disk0".into(),
            blocks: 3,
            offsets: vec![0, 1 << 20],
        };
        let text = differs.to_string();
        for words in [
            "drive disk0",
            "3 blocks",
            "0, 1048576, ...",
            "source's is the good one",
        ] {
            assert!(text.contains(words), "{words:?} is not in {text:?}");
        }
    }

    #[test]
    fn an_io_error_says_where_and_what_to_do() {
        let full = io(Some(Side::Destination), "No space left on device", false);
        says(
            &full,
            &[
                "written on the destination",
                "No space left",
                "make room",
                "without ever",
            ],
        );
        let bad = io(Some(Side::Destination), "Input/output error", true);
        says(
            &bad,
            &[
                "written on the destination",
                "destination's disk",
                "had been ready",
            ],
        );
        let guessed = io(Some(Side::Destination), "Operation not permitted", false);
        says(&guessed, &["format=raw"]);
        let unreadable = io(Some(Side::Source), "Input/output error", false);
        says(&unreadable, &["read on the source", "source's disk"]);
        says(
            &io(None, "Input/output error", false),
            &["did not say on which side"],
        );
    }
}
