//! When to stop the VM: a pure controller over readings of QEMU's migration.
//!
//! QEMU switches over by itself as soon as what remains after a dirty-bitmap sync is below
//! `bandwidth x downtime-limit` (`migration_iteration_run()`, migration/migration.c). The redirect
//! has to be in place before the VM stops, so QEMU must not get there first. Three things hold it:
//! a `downtime-limit` of 1 ms, the pace at which the relay takes its stream while little remains,
//! and the *hold* (nothing is taken) once the controller has decided.
//!
//! The controller decides to fire when the predicted pause fits the user's limit and another pass
//! would not make it notably shorter.

use std::time::Duration;

/// Below this, another pass saves less than the pass itself costs.
const SMALL_ENOUGH: f64 = 1048576.0;
/// From here on the stream is slowed down, so that there is time for several readings.
const TAIL: u64 = 16 << 20;
/// In the tail the stream is paced to take about this long for what remains.
const TAIL_TIME: Duration = Duration::from_millis(25);
/// Slowest pace: low enough that QEMU's own threshold (pace x 1 ms) is a page or two.
const FLOOR_RATE: u64 = 6 << 20;
/// STOP to RESUME with nothing left to send: device state saved, sent, loaded (measured on TCG).
const FIXED_PAUSE: Duration = Duration::from_millis(15);
/// A pass that leaves more than this share of the pass before is no longer improving.
const NO_LONGER_IMPROVING: f64 = 0.8;
/// Until the bandwidth has been measured.
const ASSUMED_BANDWIDTH: f64 = 100e6;
/// Passes without progress after which the user is told that it does not converge.
const STALLED_PASSES: u32 = 10;

/// One reading of `query-migrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Since the migration began.
    pub at: Duration,
    /// Bytes of RAM still to be sent, as of the last sync.
    pub remaining: u64,
    /// Bytes sent so far.
    pub transferred: u64,
    /// Number of dirty-bitmap syncs (`dirty-sync-count`); the first one starts pass 1.
    pub syncs: u64,
}

/// How fast the relay takes QEMU's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the user's limit allows.
    Full,
    /// Bytes per second.
    Rate(u64),
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Go on at this pace, and look again after `poll`.
    Continue { pace: Pace, poll: Duration },
    /// Hold the stream and cut over: the pause is predicted to last this long.
    Fire { predicted: Duration },
}

/// Watches one migration.
#[derive(Debug)]
pub struct Controller {
    limit: Duration,
    fixed_pause: Duration,
    bandwidth: f64,
    /// Bytes per second that the guest dirties, from the last sync.
    dirty_rate: f64,
    last: Option<Reading>,
    window: Option<Reading>,
    paced: bool,
    last_sync_at: Duration,
    best_after_sync: Option<u64>,
    improving: bool,
    stalled_passes: u32,
}

impl Controller {
    /// A controller that accepts pauses up to `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            // A guess must not keep a faster machine from ever firing.
            fixed_pause: FIXED_PAUSE.min(limit / 3),
            bandwidth: ASSUMED_BANDWIDTH,
            dirty_rate: 0.0,
            last: None,
            window: None,
            paced: false,
            last_sync_at: Duration::ZERO,
            best_after_sync: None,
            improving: true,
            stalled_passes: 0,
        }
    }

    /// The pause if the VM were stopped at this reading.
    #[must_use]
    pub fn predict(&self, reading: Reading) -> Duration {
        self.fixed_pause
            + Duration::from_secs_f64((self.pending(reading) / self.bandwidth).clamp(0.0, 3600.0))
    }

    /// Bytes to send if the VM were stopped now: what remains, and what was dirtied since the sync.
    fn pending(&self, reading: Reading) -> f64 {
        let since_sync = reading.at.saturating_sub(self.last_sync_at);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let remaining = reading.remaining as f64;
        remaining + self.dirty_rate * since_sync.as_secs_f64()
    }

    /// Measured bandwidth in bytes per second.
    #[must_use]
    pub fn bandwidth(&self) -> f64 {
        self.bandwidth
    }

    /// Measured dirty rate in bytes per second; 0 before the second sync.
    #[must_use]
    pub fn dirty_rate(&self) -> f64 {
        self.dirty_rate
    }

    /// The bandwidth, once there was a stretch to measure.
    #[must_use]
    pub fn measured_bandwidth(&self) -> Option<f64> {
        (self.bandwidth != ASSUMED_BANDWIDTH).then_some(self.bandwidth)
    }

    /// The dirty rate, once a sync told it.
    #[must_use]
    pub fn measured_dirty_rate(&self) -> Option<f64> {
        self.best_after_sync.map(|_| self.dirty_rate)
    }

    /// Whether passes stopped getting shorter while the predicted pause is still too long.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled_passes >= STALLED_PASSES
    }

    /// Takes a reading and decides.
    pub fn observe(&mut self, reading: Reading) -> Decision {
        self.measure_bandwidth(reading);
        self.measure_dirty_rate(reading);
        self.last = Some(reading);

        let predicted = self.predict(reading);
        // Pass 1 ends with the second sync; what the guest dirtied meanwhile is unknown until then.
        let past_first_pass = reading.syncs >= 2;
        let worth_waiting = self.improving && self.pending(reading) > SMALL_ENOUGH;
        if past_first_pass && predicted <= self.limit && !worth_waiting {
            return Decision::Fire { predicted };
        }
        let pace = if reading.remaining >= TAIL {
            Pace::Full
        } else {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate, rounded"
            )]
            let rate = (reading.remaining as f64 / TAIL_TIME.as_secs_f64())
                .max(2.0 * self.dirty_rate) as u64;
            Pace::Rate(rate.max(FLOOR_RATE))
        };
        self.paced = pace != Pace::Full;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let left = Duration::from_secs_f64((reading.remaining as f64 / self.bandwidth).min(3600.0));
        let poll = if self.paced {
            Duration::from_millis(2)
        } else {
            left / 8
        };
        Decision::Continue {
            pace,
            poll: poll.clamp(Duration::from_millis(2), Duration::from_millis(50)),
        }
    }

    /// Only a stretch at full pace says what the path can carry.
    fn measure_bandwidth(&mut self, reading: Reading) {
        if self.paced {
            self.window = None;
            return;
        }
        let Some(start) = self.window else {
            self.window = Some(reading);
            return;
        };
        let elapsed = reading.at.saturating_sub(start.at);
        if elapsed < Duration::from_millis(20) {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let sent = reading.transferred.saturating_sub(start.transferred) as f64;
        let measured = sent / elapsed.as_secs_f64();
        if measured > 0.0 {
            // The faster stretches are those that QEMU spent sending rather than scanning.
            self.bandwidth = if measured > self.bandwidth || self.bandwidth == ASSUMED_BANDWIDTH {
                measured
            } else {
                0.8 * self.bandwidth + 0.2 * measured
            };
        }
        self.window = Some(reading);
    }

    fn measure_dirty_rate(&mut self, reading: Reading) {
        let syncs_before = self.last.map_or(0, |l| l.syncs);
        if reading.syncs <= syncs_before {
            return;
        }
        let pass = reading.at.saturating_sub(self.last_sync_at);
        if syncs_before > 0 && !pass.is_zero() {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let found = reading.remaining as f64;
            self.dirty_rate = found / pass.as_secs_f64();
            let previous = self.best_after_sync;
            #[expect(clippy::cast_precision_loss, reason = "a ratio")]
            let improved = previous.is_none_or(|p| (found) < NO_LONGER_IMPROVING * p as f64);
            // The first sync after pass 1 has nothing to compare with, but a shorter pass follows.
            self.improving = improved;
            self.stalled_passes = if improved { 0 } else { self.stalled_passes + 1 };
            self.best_after_sync =
                Some(previous.map_or(reading.remaining, |p| p.min(reading.remaining)));
        }
        self.last_sync_at = reading.at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn reading(ms: u64, remaining: u64, transferred: u64, syncs: u64) -> Reading {
        Reading {
            at: Duration::from_millis(ms),
            remaining,
            transferred,
            syncs,
        }
    }

    /// A guest and a link in a few lines: each pass sends what the last one left.
    fn run(
        limit_ms: u64,
        ram: u64,
        bandwidth: u64,
        dirty_rate: u64,
    ) -> (Controller, Option<(u64, Duration)>) {
        let mut controller = Controller::new(Duration::from_millis(limit_ms));
        let (mut remaining, mut transferred, mut syncs, mut dirty) = (ram, 0, 1, 0u64);
        for ms in 0..60_000u64 {
            let pace = match controller.observe(reading(ms, remaining, transferred, syncs)) {
                Decision::Fire { predicted } => {
                    return (controller, Some((remaining + dirty, predicted)));
                }
                Decision::Continue { pace, .. } => pace,
            };
            let rate = match pace {
                Pace::Full => bandwidth,
                Pace::Rate(rate) => rate.min(bandwidth),
            };
            let sent = (rate / 1000).min(remaining);
            remaining -= sent;
            transferred += sent;
            dirty = (dirty + dirty_rate / 1000).min(ram);
            if remaining == 0 {
                (remaining, dirty) = (dirty, 0);
                syncs += 1;
            }
        }
        (controller, None)
    }

    #[test]
    fn it_never_fires_before_the_dirty_rate_is_known() {
        let mut controller = Controller::new(Duration::from_secs(10));
        for (ms, remaining) in [(0, 100 * MIB), (300, MIB), (400, 4096), (401, 0)] {
            assert!(matches!(
                controller.observe(reading(ms, remaining, 0, 1)),
                Decision::Continue { .. }
            ));
        }
    }

    #[test]
    fn an_idle_guest_is_cut_over_with_little_left() {
        let (_, fired) = run(50, 128 * MIB, 300 * MIB, MIB);
        let (left, predicted) = fired.expect("an idle guest converges");
        assert!(left <= 2 * MIB, "{left} bytes left");
        assert!(predicted <= Duration::from_millis(50));
    }

    #[test]
    fn a_busy_guest_is_cut_over_when_passes_no_longer_get_shorter() {
        let (_, fired) = run(100, 512 * MIB, 300 * MIB, 60 * MIB);
        let (left, _) = fired.expect("60 MiB/s converges at 300 MiB/s");
        assert!(left <= 16 * MIB, "{left} bytes left");
    }

    #[test]
    fn a_guest_that_dirties_faster_than_the_link_is_not_stopped() {
        let (controller, fired) = run(50, 256 * MIB, 100 * MIB, 200 * MIB);
        assert_eq!(fired, None);
        assert!(controller.is_stalled());
    }

    #[test]
    fn the_tail_is_paced_so_that_qemu_cannot_finish_between_two_readings() {
        let mut controller = Controller::new(Duration::from_millis(50));
        controller.observe(reading(0, 128 * MIB, 0, 1));
        let Decision::Continue {
            pace: Pace::Rate(rate),
            poll,
        } = controller.observe(reading(400, 4 * MIB, 124 * MIB, 1))
        else {
            panic!("a tail at full pace")
        };
        assert_eq!(poll, Duration::from_millis(2));
        assert!(rate <= 4 * MIB * 40, "{rate}");
    }
}
