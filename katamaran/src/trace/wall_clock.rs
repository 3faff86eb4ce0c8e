//! Times of day.

use chrono::{DateTime, SecondsFormat, Utc};
use nix::time::{ClockId, clock_gettime};

/// The time now.
pub(super) fn now() -> String {
    text(nanoseconds(ClockId::CLOCK_REALTIME))
}

/// When the kernel's clock showed this.
pub(super) fn of_monotonic(ns: u64) -> String {
    let ago = nanoseconds(ClockId::CLOCK_MONOTONIC) - i64::try_from(ns).unwrap_or(0);
    text(nanoseconds(ClockId::CLOCK_REALTIME) - ago)
}

fn text(ns: i64) -> String {
    DateTime::<Utc>::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn nanoseconds(clock: ClockId) -> i64 {
    // Both clocks are on every Linux.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_microseconds() {
        assert_eq!(
            text(1_795_338_753_123_456_789),
            "2026-11-22T09:12:33.123456Z"
        );
    }

    #[test]
    fn the_kernels_clock_is_turned_into_the_time_of_day() {
        let monotonic = u64::try_from(nanoseconds(ClockId::CLOCK_MONOTONIC)).unwrap();
        let (then, now) = (of_monotonic(monotonic - 1_000_000_000), now());
        assert!(then < now, "{then} {now}");
        assert_eq!(then[..10].len(), now[..10].len());
    }
}
