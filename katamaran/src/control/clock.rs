//! How far the peer's clock is from ours, from the times that heartbeats carry.
//!
//! As NTP does it: a ping leaves at `t1`, reaches the peer at `t2`, is answered at `t3` and the
//! answer is here at `t4`. The error of the offset is at most half the round trip, so the sample
//! with the shortest one counts.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Samples kept: a quarter of a minute of heartbeats, in which clocks drift by microseconds.
const WINDOW: usize = 64;

/// A clock that moved against the monotonic one by more than this was set.
const STEP: Duration = Duration::from_millis(1);

/// The peer's real-time clock against ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// The peer's clock minus ours, in nanoseconds; off by at most half of `rtt_ns`.
    pub offset_ns: i64,
    /// The round trip of the sample it comes from, in nanoseconds.
    pub rtt_ns: u64,
}

/// One moment, on both clocks of this node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    real_ns: u64,
    steady: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        // Nanoseconds since the epoch fit until the year 2554.
        let real_ns = u64::try_from(real.as_nanos()).unwrap_or(u64::MAX);
        Self {
            real_ns,
            steady: Instant::now(),
        }
    }

    /// Nanoseconds since the epoch.
    pub(super) fn real_ns(self) -> u64 {
        self.real_ns
    }
}

/// The samples of one session.
#[derive(Debug, Default)]
pub(super) struct Clock {
    samples: VecDeque<ClockOffset>,
    taken: u64,
}

impl Clock {
    /// Takes the sample of a ping sent at `t1` and answered at `t4`; the peer received it at
    /// `received_ns` and answered at `answered_ns`, by its own clock.
    pub(super) fn sample(&mut self, t1: Moment, received_ns: u64, answered_ns: u64, t4: Moment) {
        let steady = t4.steady.saturating_duration_since(t1.steady);
        let real = i128::from(t4.real_ns) - i128::from(t1.real_ns);
        let stepped = real.abs_diff(nanos(steady)) > STEP.as_nanos();
        if stepped {
            // Our own clock was set meanwhile: no earlier sample is right any more.
            self.samples.clear();
            return;
        }
        let held = i128::from(answered_ns) - i128::from(received_ns);
        let rtt = nanos(steady) - held;
        let there = i128::from(received_ns) - i128::from(t1.real_ns);
        let back = i128::from(answered_ns) - i128::from(t4.real_ns);
        let (Ok(rtt_ns), Ok(offset_ns)) = (
            u64::try_from(rtt),
            i64::try_from(i128::midpoint(there, back)),
        ) else {
            return;
        };
        if held < 0 {
            return;
        }
        if self.samples.len() == WINDOW {
            self.samples.pop_front();
        }
        self.samples.push_back(ClockOffset { offset_ns, rtt_ns });
        self.taken += 1;
    }

    /// The best of the recent samples.
    pub(super) fn best(&self) -> Option<ClockOffset> {
        self.samples
            .iter()
            .min_by_key(|sample| sample.rtt_ns)
            .copied()
    }

    /// How many samples were taken in all.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Moment, after_ns: u64) -> Moment {
        Moment {
            real_ns: start.real_ns + after_ns,
            steady: start.steady + Duration::from_nanos(after_ns),
        }
    }

    #[test]
    fn the_shortest_round_trip_wins() {
        let mut clock = Clock::default();
        let t1 = Moment::now();
        let peer = |after: u64| t1.real_ns + 5_000_000_000 + after;
        // 100 us there, 20 held, 100 back; then a slow way there.
        clock.sample(t1, peer(100_000), peer(120_000), at(t1, 220_000));
        clock.sample(t1, peer(900_000), peer(900_000), at(t1, 950_000));
        let best = clock.best().unwrap();
        assert_eq!(
            best,
            ClockOffset {
                offset_ns: 5_000_000_000,
                rtt_ns: 200_000
            }
        );
    }

    #[test]
    fn a_peer_behind_us_has_a_negative_offset() {
        let mut clock = Clock::default();
        let t1 = Moment::now();
        let peer = t1.real_ns - 1_000_000;
        clock.sample(t1, peer + 50, peer + 50, at(t1, 100));
        assert_eq!(clock.best().unwrap().offset_ns, -1_000_000);
    }

    #[test]
    fn a_set_clock_discards_what_was_measured_before() {
        let mut clock = Clock::default();
        let t1 = Moment::now();
        clock.sample(t1, t1.real_ns, t1.real_ns, at(t1, 10));
        let mut t4 = at(t1, 10);
        t4.real_ns += 2_000_000;
        clock.sample(t1, t1.real_ns, t1.real_ns, t4);
        assert_eq!(clock.best(), None);
    }

    #[test]
    fn impossible_times_of_a_peer_are_ignored() {
        let mut clock = Clock::default();
        let t1 = Moment::now();
        clock.sample(t1, 500, 400, at(t1, 1_000));
        clock.sample(t1, 0, u64::MAX, at(t1, 1_000));
        assert_eq!(clock.best(), None);
    }

    #[test]
    fn old_samples_leave() {
        let mut clock = Clock::default();
        let t1 = Moment::now();
        clock.sample(t1, t1.real_ns, t1.real_ns, at(t1, 1));
        for _ in 0..WINDOW {
            clock.sample(t1, t1.real_ns, t1.real_ns, at(t1, 50));
        }
        assert_eq!(clock.best().unwrap().rtt_ns, 50);
        assert_eq!(clock.taken(), 65);
    }
}
