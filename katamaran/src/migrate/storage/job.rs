//! What QEMU says of a mirror job, and what that means: a pure state machine.
//!
//! ```text
//!   Awaited ──▶ Copying ──▶ Ready ──▶ (told to end) ──▶ Ended
//!      └───────────┴──────────┴──▶ error: gone, over too early, failed, too slow
//! ```

use std::time::Duration;

use super::error::{Mirrored, Side, StorageError};
use crate::deadline;
use crate::qmp::command::BlockJobInfo;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// QEMU does not show it yet.
    Awaited,
    /// It copies.
    Copying,
    /// The destination's drive is the same but for what is being written.
    Ready {
        /// No write is acknowledged to the guest before it is on both; true where QEMU can't tell.
        synced: bool,
    },
    /// It has met an error and will end.
    Failing,
    /// It has ended gracefully, nothing is missing.
    Ended,
}

impl Standing {
    #[must_use]
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Ended)
    }

    #[must_use]
    pub fn is_synced(self) -> bool {
        matches!(self, Self::Ready { synced: true } | Self::Ended)
    }
}

/// Follows one job.
#[derive(Debug)]
pub struct JobTracker {
    job: Mirrored,
    sync_timeout: Duration,
    seen: bool,
    ready: bool,
    ended: bool,
    failing: Option<Duration>,
    /// When it was last seen to move, or to have nothing to do.
    moved: Duration,
    side: Option<Side>,
    copied: u64,
    total: u64,
}

impl JobTracker {
    /// A job that was just started, and has to be ready within `sync_timeout`.
    #[must_use]
    pub fn new(job: Mirrored, sync_timeout: Duration) -> Self {
        Self {
            job,
            sync_timeout,
            seen: false,
            ready: false,
            ended: false,
            failing: None,
            moved: Duration::ZERO,
            side: None,
            copied: 0,
            total: 0,
        }
    }

    /// The job and its drive.
    #[must_use]
    pub fn job(&self) -> &Mirrored {
        &self.job
    }

    /// Bytes copied, and bytes to be copied in all, as last seen.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.copied, self.total)
    }

    /// For how long it has had something to copy and copied nothing.
    #[must_use]
    pub fn stuck_for(&self, at: Duration) -> Duration {
        at.saturating_sub(self.moved)
    }

    /// QEMU has reported an I/O error of this job: `operation` is `read` or `write`.
    pub fn note_error(&mut self, at: Duration, operation: Option<&str>) {
        self.failing.get_or_insert(at);
        self.side = match operation {
            Some("read") => Some(Side::Source),
            Some("write") => Some(Side::Destination),
            _ => self.side,
        };
    }

    /// What QEMU says of the job, `at` after its start; `ending` once we have told it to end.
    ///
    /// # Errors
    /// The mirror has failed.
    pub fn observe(
        &mut self,
        at: Duration,
        ending: bool,
        seen: Option<&BlockJobInfo>,
    ) -> Result<Standing, StorageError> {
        let job = || self.job.clone();
        let Some(info) = seen else {
            return match (self.ended, self.seen) {
                (true, _) => Ok(Standing::Ended),
                (false, true) => Err(StorageError::Disappeared { job: job() }),
                (false, false) if at >= deadline::JOB_APPEARS => {
                    Err(StorageError::DidNotAppear { job: job() })
                }
                (false, false) => Ok(Standing::Awaited),
            };
        };
        if !self.seen || info.offset != self.copied || info.offset >= info.len {
            self.moved = at;
        }
        self.seen = true;
        (self.copied, self.total) = (info.offset, info.len);
        if info.status.is_over() {
            return self.over(ending, info);
        }
        if let Some(reason) = info.io_status.error() {
            return Err(self.failed(&info.status.to_string(), reason));
        }
        if let Some(since) = self.failing {
            return if at.saturating_sub(since) >= deadline::JOB_FAILS {
                Err(self.failed(&info.status.to_string(), "QEMU did not say why"))
            } else {
                Ok(Standing::Failing)
            };
        }
        if self.stuck_for(at) >= deadline::JOB_STALL {
            return Err(StorageError::Stalled {
                job: job(),
                bytes: self.total.saturating_sub(self.copied),
            });
        }
        if info.ready {
            self.ready = true;
            let synced = info.actively_synced.unwrap_or(true);
            return Ok(Standing::Ready { synced });
        }
        // On its way out a job is not ready any more.
        if self.ready && ending {
            return Ok(Standing::Ready { synced: true });
        }
        if at >= self.sync_timeout {
            return Err(StorageError::TimedOut {
                job: job(),
                after: self.sync_timeout,
                percent: (self.copied.saturating_mul(100))
                    .checked_div(self.total)
                    .unwrap_or(0),
            });
        }
        Ok(Standing::Copying)
    }

    fn over(&mut self, ending: bool, info: &BlockJobInfo) -> Result<Standing, StorageError> {
        let state = info.status.to_string();
        if let Some(reason) = &info.error {
            return Err(self.failed(&state, reason));
        }
        if !(ending && self.ready) {
            return Err(StorageError::Ended {
                job: self.job.clone(),
                state,
                ready: self.ready,
            });
        }
        if info.offset != info.len {
            return Err(StorageError::Behind {
                job: self.job.clone(),
                bytes: info.len.saturating_sub(info.offset),
            });
        }
        self.ended = true;
        Ok(Standing::Ended)
    }

    fn failed(&self, state: &str, reason: &str) -> StorageError {
        let (job, state, ready) = (self.job.clone(), state.to_owned(), self.ready);
        let reason = reason.to_owned();
        if reason.contains("Operation canceled") {
            return StorageError::Cancelled {
                job,
                state,
                ready,
                reason,
            };
        }
        StorageError::Io {
            job,
            state,
            ready,
            side: self.side,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    fn tracker() -> JobTracker {
        let job = Mirrored {
            drive: "d".into(),
            job: "katamaran-d".into(),
        };
        JobTracker::new(job, Duration::from_secs(7200))
    }

    /// As QEMU 10.0 writes it.
    fn seen(status: &str, offset: u64, error: Option<&str>) -> BlockJobInfo {
        let mut job = json!({
            "auto-finalize": true, "io-status": "ok", "device": "katamaran-d", "auto-dismiss": false,
            "busy": false, "len": 64, "offset": offset, "status": status, "paused": false, "speed": 0,
            "ready": status == "ready", "type": "mirror", "actively-synced": false,
        });
        if let Some(error) = error {
            job["error"] = error.into();
        }
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_good_mirror_goes_from_awaited_to_ended() {
        let mut t = tracker();
        assert_eq!(t.observe(SOON, false, None).unwrap(), Standing::Awaited);
        let running = seen("running", 3, None);
        assert_eq!(
            t.observe(SOON, false, Some(&running)).unwrap(),
            Standing::Copying
        );
        let mut ready = seen("ready", 60, None);
        let standing = t.observe(SOON, false, Some(&ready)).unwrap();
        assert!(standing.is_ready() && !standing.is_synced());
        ready.actively_synced = None;
        let standing = t.observe(SOON, false, Some(&ready)).unwrap();
        assert!(
            standing.is_synced(),
            "a QEMU that does not tell is believed"
        );
        let waiting = seen("waiting", 64, None);
        assert!(t.observe(SOON, true, Some(&waiting)).unwrap().is_ready());
        let over = seen("concluded", 64, None);
        assert_eq!(t.observe(SOON, true, Some(&over)).unwrap(), Standing::Ended);
        assert_eq!(
            t.observe(SOON, true, None).unwrap(),
            Standing::Ended,
            "dismissed by us"
        );
    }

    #[test]
    fn a_job_that_never_comes_or_goes_away_is_an_error() {
        let mut t = tracker();
        assert!(
            t.observe(Duration::from_millis(29_999), false, None)
                .is_ok()
        );
        let error = t.observe(Duration::from_secs(30), false, None).unwrap_err();
        assert!(
            matches!(error, StorageError::DidNotAppear { .. }),
            "{error}"
        );

        let mut t = tracker();
        t.observe(SOON, false, Some(&seen("running", 3, None)))
            .unwrap();
        let error = t.observe(SOON, false, None).unwrap_err();
        assert!(matches!(error, StorageError::Disappeared { .. }), "{error}");
    }

    #[test]
    fn an_end_that_nobody_asked_for_is_an_error_in_every_state() {
        for status in ["concluded", "null"] {
            for ready in [false, true] {
                let mut t = tracker();
                if ready {
                    t.observe(SOON, false, Some(&seen("ready", 60, None)))
                        .unwrap();
                }
                let error = t
                    .observe(SOON, false, Some(&seen(status, 64, None)))
                    .unwrap_err();
                assert!(
                    matches!(&error, StorageError::Ended { state, ready: r, .. } if state == status && *r == ready),
                    "{error}"
                );
            }
        }
        // Told to end before it was ever ready: nothing says that the copy is complete.
        let error = tracker()
            .observe(SOON, true, Some(&seen("concluded", 64, None)))
            .unwrap_err();
        assert!(
            matches!(error, StorageError::Ended { ready: false, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_end_with_something_missing_is_an_error() {
        let mut t = tracker();
        t.observe(SOON, false, Some(&seen("ready", 60, None)))
            .unwrap();
        let error = t
            .observe(SOON, true, Some(&seen("concluded", 60, None)))
            .unwrap_err();
        assert!(
            matches!(error, StorageError::Behind { bytes: 4, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_failed_job_tells_side_and_reason_also_while_it_is_told_to_end() {
        for ending in [false, true] {
            let mut t = tracker();
            t.observe(SOON, false, Some(&seen("ready", 60, None)))
                .unwrap();
            t.note_error(SOON, Some("write"));
            assert_eq!(
                t.observe(SOON, ending, Some(&seen("ready", 60, None)))
                    .unwrap(),
                Standing::Failing
            );
            let over = seen("concluded", 60, Some("No space left on device"));
            let error = t.observe(SOON, ending, Some(&over)).unwrap_err();
            assert!(
                matches!(&error, StorageError::Io { side: Some(Side::Destination), ready: true, reason, .. }
                    if reason == "No space left on device"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_job_that_an_error_has_paused_tells_side_and_reason() {
        for (io_status, said) in [
            ("failed", "Input/output error"),
            ("nospace", "No space left on device"),
        ] {
            let mut t = tracker();
            t.note_error(SOON, Some("write"));
            let mut paused = seen("paused", 3, None);
            paused.io_status = io_status.into();
            let error = t.observe(SOON, false, Some(&paused)).unwrap_err();
            assert!(
                matches!(&error, StorageError::Io { side: Some(Side::Destination), reason, state, .. }
                    if reason == said && state == "paused"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_job_that_reported_an_error_and_does_not_end_is_not_waited_for() {
        let mut t = tracker();
        t.note_error(SOON, Some("read"));
        let running = seen("running", 3, None);
        assert!(t.observe(SOON, false, Some(&running)).is_ok());
        let error = t
            .observe(SOON + deadline::JOB_FAILS, false, Some(&running))
            .unwrap_err();
        assert!(
            matches!(
                error,
                StorageError::Io {
                    side: Some(Side::Source),
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_job_that_somebody_cancels_is_told_as_that() {
        let over = seen("concluded", 3, Some("Operation canceled"));
        let error = tracker().observe(SOON, false, Some(&over)).unwrap_err();
        assert!(matches!(error, StorageError::Cancelled { .. }), "{error}");
    }

    #[test]
    fn a_job_that_is_stuck_with_something_to_do_is_an_error_and_an_idle_one_is_not() {
        for status in ["running", "ready"] {
            let mut t = tracker();
            let stuck = seen(status, 60, None);
            assert!(t.observe(SOON, false, Some(&stuck)).is_ok());
            let end = SOON + deadline::JOB_STALL;
            assert!(
                t.observe(end - Duration::from_millis(1), false, Some(&stuck))
                    .is_ok()
            );
            let error = t.observe(end, false, Some(&stuck)).unwrap_err();
            assert!(
                matches!(error, StorageError::Stalled { bytes: 4, .. }),
                "{error}"
            );

            let mut t = tracker();
            let idle = seen(status, 64, None);
            for seconds in [1, 100, 200] {
                t.observe(Duration::from_secs(seconds), false, Some(&idle))
                    .unwrap();
            }
        }
    }

    #[test]
    fn a_copy_that_takes_too_long_is_an_error_until_it_was_ready_once() {
        let late = Duration::from_secs(7200);
        let mut t = tracker();
        let running = seen("running", 16, None);
        t.observe(late - SOON, false, Some(&running)).unwrap();
        let error = t.observe(late, false, Some(&running)).unwrap_err();
        assert!(
            matches!(error, StorageError::TimedOut { percent: 25, .. }),
            "{error}"
        );
        assert!(
            tracker()
                .observe(late, false, Some(&seen("ready", 60, None)))
                .is_ok()
        );
    }
}
