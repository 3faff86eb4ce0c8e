//! How fast bytes may leave the source's QEMU, switchable at any moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// One portion at a limited rate lasts this long: the granularity of the timer.
const PORTION: Duration = Duration::from_millis(1);

/// What a late wake-up may catch up on at once.
const CATCH_UP: Duration = Duration::from_millis(8);

/// How fast bytes may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as they can.
    Full,
    /// At this many bytes per second, over all streams, in small portions. 0 is [`Pace::Hold`].
    Rate(u64),
    /// Not at all.
    Hold,
}

/// Sets the pace of a relay; clones are the same governor.
#[derive(Debug, Clone)]
pub struct Governor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pace: watch::Sender<Pace>,
    bucket: Mutex<Bucket>,
}

/// Tokens may be negative: bytes are charged after they went.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Leave to read some bytes.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) bytes: usize,
    /// Follows the pace that the grant was made under.
    pub(super) pace: watch::Receiver<Pace>,
}

impl Governor {
    /// A governor that starts with `pace`.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        let bucket = Bucket {
            tokens: 0.0,
            filled: Instant::now(),
        };
        let (pace, _) = watch::channel(normal(pace));
        Self {
            shared: Arc::new(Shared {
                pace,
                bucket: Mutex::new(bucket),
            }),
        }
    }

    /// Sets the pace, at once: streams that wait are woken, and no stream starts another read under
    /// the old pace.
    pub fn set(&self, pace: Pace) {
        let pace = normal(pace);
        self.shared.pace.send_if_modified(|current| {
            if *current == pace {
                return false;
            }
            if let Pace::Rate(_) = pace {
                // A new rate starts afresh, without the credit or debt of an earlier one.
                *self.bucket() = Bucket {
                    tokens: 0.0,
                    filled: Instant::now(),
                };
            }
            *current = pace;
            true
        });
    }

    /// The pace that is set.
    #[must_use]
    pub fn pace(&self) -> Pace {
        *self.shared.pace.borrow()
    }

    /// Waits until some of `wanted` bytes may be read.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is taken before [`Governor::charge`].
    pub(super) async fn grant(&self, wanted: usize) -> Grant {
        let mut pace = self.shared.pace.subscribe();
        loop {
            let now = *pace.borrow_and_update();
            let ready_at = match now {
                Pace::Full => {
                    return Grant {
                        bytes: wanted,
                        pace,
                    };
                }
                Pace::Hold => None,
                Pace::Rate(rate) => match self.bucket().ready(rate, Instant::now()) {
                    Ok(()) => {
                        return Grant {
                            bytes: wanted.min(portion(rate)),
                            pace,
                        };
                    }
                    Err(at) => Some(at),
                },
            };
            let changed = pace.changed();
            let changed = match ready_at {
                None => changed.await,
                Some(at) => tokio::select! {
                    changed = changed => changed,
                    () = sleep_until(at) => Ok(()),
                },
            };
            changed.expect("the sender lives in self");
        }
    }

    /// Waits while the pace is [`Pace::Hold`].
    pub(super) async fn pass(&self) {
        if self.pace() == Pace::Hold {
            let mut pace = self.shared.pace.subscribe();
            let passed = pace.wait_for(|pace| *pace != Pace::Hold).await;
            drop(passed.expect("the sender lives in self"));
        }
    }

    /// Counts bytes that went.
    pub(super) fn charge(&self, bytes: usize) {
        if let Pace::Rate(_) = self.pace() {
            self.bucket().tokens -= as_f64(bytes);
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.shared
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Governor {
    fn default() -> Self {
        Self::new(Pace::Full)
    }
}

impl Bucket {
    /// Fills the bucket; `Err` is when it will hold enough.
    fn ready(&mut self, rate: u64, now: Instant) -> Result<(), Instant> {
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 exact bits")]
        let rate = rate as f64;
        let passed = now.saturating_duration_since(self.filled);
        self.filled = now;
        let most = rate * CATCH_UP.as_secs_f64();
        self.tokens = (self.tokens + rate * passed.as_secs_f64()).min(most);
        if self.tokens > 0.0 {
            return Ok(());
        }
        let missing = (-self.tokens / rate).max(PORTION.as_secs_f64());
        // Bounded, so that a tiny rate makes no time that does not exist.
        Err(now + Duration::from_secs_f64(missing.min(3600.0)))
    }
}

/// Bytes of a portion at `rate`; at least one, or nothing would ever go.
fn portion(rate: u64) -> usize {
    let micros = u64::try_from(PORTION.as_micros()).unwrap_or(u64::MAX);
    let bytes = u128::from(rate) * u128::from(micros) / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX).max(1)
}

fn normal(pace: Pace) -> Pace {
    if pace == Pace::Rate(0) {
        Pace::Hold
    } else {
        pace
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a chunk is far below 2^53 bytes"
)]
fn as_f64(bytes: usize) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that pass in `span` of paused time when each grant is used up.
    async fn passed(governor: &Governor, span: Duration) -> usize {
        let end = Instant::now() + span;
        let mut bytes = 0;
        while let Ok(grant) = tokio::time::timeout_at(end, governor.grant(1 << 20)).await {
            governor.charge(grant.bytes);
            bytes += grant.bytes;
        }
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_over_time_and_in_small_spans() {
        for rate in [64_000, 6_000_000, 900_000_000] {
            let governor = Governor::new(Pace::Rate(rate));
            let rate = usize::try_from(rate).unwrap();
            for (milliseconds, tolerance) in [(10_u64, 4), (100, 3), (2_000, 3)] {
                let bytes = passed(&governor, Duration::from_millis(milliseconds)).await;
                let due = rate * usize::try_from(milliseconds).unwrap() / 1_000;
                let slack = rate * tolerance / 1_000;
                assert!(
                    bytes.abs_diff(due) <= slack,
                    "{rate}/s, {milliseconds} ms: {bytes}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_overdraft_is_paid_back() {
        let governor = Governor::new(Pace::Rate(1_000_000));
        governor.charge(1_000_000);
        assert_eq!(passed(&governor, Duration::from_millis(900)).await, 0);
        assert!(passed(&governor, Duration::from_millis(200)).await > 50_000);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let governor = Governor::new(Pace::Rate(1_000_000));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let bytes = passed(&governor, Duration::from_millis(100)).await;
        assert!(bytes < 115_000, "{bytes}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_passes_a_hold_and_a_change_wakes_at_once() {
        let governor = Governor::new(Pace::Rate(0));
        assert_eq!(governor.pace(), Pace::Hold);
        assert_eq!(passed(&governor, Duration::from_secs(60)).await, 0);

        let mut waiting = Box::pin(governor.grant(100));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let before = Instant::now();
        governor.set(Pace::Full);
        assert_eq!(waiting.await.bytes, 100);
        assert_eq!(Instant::now(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_for_a_tiny_rate_follows_a_change() {
        let governor = Governor::new(Pace::Rate(1));
        governor.charge(1 << 30);
        let mut waiting = Box::pin(governor.grant(100));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        governor.set(Pace::Rate(1_000_000));
        let before = Instant::now();
        assert_eq!(waiting.await.bytes, 100);
        assert!(before.elapsed() < Duration::from_millis(10));
    }
}
