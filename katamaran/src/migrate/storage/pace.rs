//! Whether a copy gets nearer to its end, while a guest writes behind its back.

use std::time::Duration;

/// For so long at least less and less must be left over and over again, or the copy stands still.
const PATIENCE: Duration = Duration::from_secs(10);
/// A long copy may be set back for longer: by this share of the time that it has taken.
const SHARE: u32 = 10;

/// Follows what is left of a copy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    least: Option<(u64, Duration)>,
}

impl Pace {
    /// `left` bytes are left, `at` after the start. Whether it has not become less for so long that it will not.
    pub(crate) fn stands_still(&mut self, at: Duration, left: u64) -> bool {
        match self.least {
            Some((least, since)) if left >= least => {
                at.saturating_sub(since) >= PATIENCE.max(at / SHARE)
            }
            _ => {
                self.least = Some((left, at));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_copy_that_gets_on_never_stands_still_however_slowly() {
        let mut pace = Pace::default();
        for second in 0..10_000 {
            assert!(!pace.stands_still(S * second, 20_000 - u64::from(second)));
        }
    }

    #[test]
    fn one_that_goes_to_and_fro_above_its_least_stands_still() {
        let mut pace = Pace::default();
        for (second, left) in [(0, 100), (1, 20), (5, 30), (10, 20)] {
            assert!(!pace.stands_still(S * second, left));
        }
        assert!(pace.stands_still(S * 11, 21));
        assert!(!pace.stands_still(S * 12, 19), "it gets on again");
    }

    #[test]
    fn a_long_copy_may_be_set_back_for_longer() {
        let mut pace = Pace::default();
        pace.stands_still(S * 1000, 100);
        assert!(!pace.stands_still(S * 1100, 200));
        assert!(pace.stands_still(S * 1112, 200));
    }
}
