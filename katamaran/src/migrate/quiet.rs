//! When the network sends the VM's packets elsewhere: nothing has come this way for a while.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);
/// So often it is said what is waited for.
const TELL: Duration = Duration::from_secs(5);

/// Waits until a count has stood still for `quiet`; `tell` is called now and then while it does not. Returns whether that was before
/// `limit`; where that is shorter, whether it has stood still all the time.
pub(crate) async fn until_quiet(
    quiet: Duration,
    limit: Duration,
    mut arrived: impl FnMut() -> Option<u64>,
    tell: impl Fn(Option<u64>),
) -> bool {
    let began = Instant::now();
    let mut last = (arrived(), began);
    let mut told = began;
    loop {
        tokio::time::sleep(POLL).await;
        let now = arrived();
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() >= quiet {
            return true;
        }
        if began.elapsed() >= limit {
            return last.1 == began;
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            tell(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_after_a_while_is_waited_for() {
        let began = Instant::now();
        // Something comes every 100 ms, ten times.
        let arrived = || Some((began.elapsed().as_millis() / 100).min(10) as u64);
        let quiet = Duration::from_millis(300);
        assert!(until_quiet(quiet, Duration::from_secs(60), arrived, |_| ()).await);
        assert_eq!(arrived(), Some(10));
    }

    #[tokio::test]
    async fn who_does_not_want_to_wait_is_told_of_what_came_and_of_nothing_else() {
        let (quiet, limit) = (Duration::from_secs(60), Duration::ZERO);
        assert!(until_quiet(quiet, limit, || Some(7), |_| ()).await);
        let mut count = 0;
        let arrived = || {
            count += 1;
            Some(count)
        };
        assert!(!until_quiet(quiet, limit, arrived, |_| ()).await);
    }

    #[tokio::test]
    async fn what_never_ends_is_not_waited_for_for_ever() {
        let mut count = 0;
        let arrived = || {
            count += 1;
            Some(count)
        };
        let (quiet, limit) = (Duration::from_secs(60), Duration::from_millis(100));
        assert!(!until_quiet(quiet, limit, arrived, |_| ()).await);
    }
}
