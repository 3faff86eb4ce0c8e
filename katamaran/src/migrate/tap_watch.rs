//! Reads a tap's three counters, in the order that [`TapAccount`] asks for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::TapBalance;
use super::tap_account::{Amount, TapAccount, TapSample};
use crate::ebpf::{Count, Offered};
use crate::net::tap::TapCounters;

/// What the hooks counted towards the tap. `None` where it cannot be read.
pub(crate) trait HookCounts {
    /// Handed to the tap's driver.
    fn offered(&self) -> Option<Offered>;
    /// What is the VM's of what the TC hook passed.
    fn passed(&self) -> Option<Count>;
}

/// The running balance of the tap on this node.
#[derive(Debug)]
pub(crate) struct TapWatch {
    counters: TapCounters,
    account: TapAccount,
}

impl TapWatch {
    pub(crate) fn new(counters: TapCounters) -> Self {
        Self {
            counters,
            account: TapAccount::default(),
        }
    }

    /// Takes one reading. Returns false when a counter could not be read.
    pub(crate) fn observe(&mut self, hooks: &impl HookCounts) -> bool {
        let Ok(tap) = self.counters.read() else {
            return false;
        };
        let (Some(offered), Some(passed)) = (hooks.offered(), hooks.passed()) else {
            return false;
        };
        let amount = |count: Count| Amount {
            skbs: count.skbs,
            packets: count.packets,
        };
        self.account.observe(TapSample {
            read: tap.read,
            dropped: tap.dropped,
            offered_skbs: offered.skbs(),
            offered: amount(offered.vm),
            passed: amount(passed),
        });
        true
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.account.is_drained()
    }

    pub(crate) fn all_left_at(&self) -> Option<u64> {
        self.account.all_left_at()
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.account.left()
    }

    pub(crate) fn balance(&self) -> Option<TapBalance> {
        self.account.balance()
    }

    pub(crate) fn add_injected(&mut self, frames: u64) {
        self.account.add_injected(frames);
    }
}

/// A watch that several steps take readings with.
pub(crate) type SharedWatch = Arc<Mutex<TapWatch>>;

/// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
