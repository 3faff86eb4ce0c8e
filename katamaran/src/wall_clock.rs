//! The time of day, as records and reports carry it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the epoch, now.
#[must_use]
pub(crate) fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}
