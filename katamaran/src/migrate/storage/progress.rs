//! How far the copy of a drive is, and how fast it goes.

use std::time::Duration;

use super::error::Mirrored;
use super::job::Standing;

/// Speed is measured over about this long.
const WINDOW: Duration = Duration::from_secs(3);

/// Where the mirror of a drive stands.
#[derive(Debug, Clone, PartialEq)]
pub struct DriveProgress {
    pub job: Mirrored,
    pub standing: Standing,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes to be copied in all: it grows with what the guest writes meanwhile.
    pub total: u64,
    /// Bytes per second, of late.
    pub rate: f64,
    /// For how long it has had something to copy and copied nothing.
    pub stuck: Duration,
    /// From the start until it was ready the first time, or until now.
    pub took: Duration,
    /// Bytes copied when it was ready the first time.
    pub copied_until_ready: Option<u64>,
}

impl DriveProgress {
    /// Bytes that differ between the two nodes: to be copied still, or written since.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.total.saturating_sub(self.copied)
    }

    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.standing == Standing::Ended
    }

    #[must_use]
    pub fn percent(&self) -> u64 {
        match self.total {
            0 if self.standing.is_ready() => 100,
            total => self
                .copied
                .saturating_mul(100)
                .checked_div(total)
                .unwrap_or(0),
        }
    }

    /// Until the backlog is gone, at the speed of late.
    #[must_use]
    pub fn eta(&self) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = self.backlog() as f64 / self.rate;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// Measures a speed.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    last: Option<(Duration, u64)>,
    rate: Option<f64>,
}

impl Meter {
    /// `bytes` were done by `at`; returns bytes per second, the recent past counting more.
    pub(crate) fn observe(&mut self, at: Duration, bytes: u64) -> f64 {
        let Some((then, before)) = self.last else {
            self.last = Some((at, bytes));
            return 0.0;
        };
        let span = at.saturating_sub(then).as_secs_f64();
        // Several looks within a moment would measure the scheduler.
        if span < 0.1 {
            return self.rate.unwrap_or(0.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "a speed")]
        let now = bytes.saturating_sub(before) as f64 / span;
        let weight = (span / WINDOW.as_secs_f64()).min(1.0);
        let rate = self.rate.map_or(now, |rate| rate + (now - rate) * weight);
        self.last = Some((at, bytes));
        self.rate = Some(rate);
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_speed_is_measured_and_a_new_one_followed() {
        let mut meter = Meter::default();
        let mut bytes = 0;
        let mut at = Duration::ZERO;
        let mut run = |rate: u64, steps: u32| {
            let mut told = 0.0;
            for _ in 0..steps {
                at += Duration::from_millis(250);
                bytes += rate / 4;
                told = meter.observe(at, bytes);
            }
            told
        };
        assert!((run(1000, 10) - 1000.0).abs() < 1.0);
        let slower = run(200, 60);
        assert!((slower - 200.0).abs() < 20.0, "{slower}");
    }

    #[test]
    fn the_estimate_is_none_while_nothing_moves() {
        let mut drive = DriveProgress {
            job: Mirrored {
                drive: "d".into(),
                job: "j".into(),
            },
            standing: Standing::Copying,
            copied: 25,
            total: 100,
            rate: 0.0,
            stuck: Duration::ZERO,
            took: Duration::ZERO,
            copied_until_ready: None,
        };
        assert_eq!(
            (drive.percent(), drive.backlog(), drive.eta()),
            (25, 75, None)
        );
        drive.rate = 25.0;
        assert_eq!(drive.eta(), Some(Duration::from_secs(3)));
    }
}
