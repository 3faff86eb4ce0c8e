//! Balances what a hook passed to a tap against what QEMU has read from it.
//!
//! Three counters that nobody can read at one instant: packets that the TC hook passed, packets
//! that reached the tap's driver (`net_dev_start_xmit`), packets that user space read
//! (`tx_packets`, counted in `tun_put_user()`, drivers/net/tun.c). Each starts at some unknown
//! offset of the others, because traffic runs while they are armed. Read in the order *downstream
//! first*, every reading gives a lower bound of the offset, and the exact value whenever nothing is
//! in between; so the largest bound seen is the offset.

use super::ledger::TapBalance;

/// One reading. The fields must be read in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapSample {
    /// The tap's `tx_packets`: read by QEMU.
    pub read: u64,
    /// The tap's `tx_dropped`: refused by its ring.
    pub dropped: u64,
    /// skbs handed to the tap's driver, the VM's and all others: the ring does not tell them apart.
    pub offered_skbs: u64,
    /// The VM's packets on the wire that were handed to the tap's driver.
    pub offered_packets: u64,
    /// The VM's packets on the wire that the hook passed. Others may be dropped on the way from there to
    /// the driver, and are: the kernel's own multicast, while a device has just come up.
    pub passed_packets: u64,
}

/// The running balance of one tap.
#[derive(Debug, Clone, Default)]
pub struct TapAccount {
    /// read + dropped - offered, with the ring empty.
    ring_offset: Option<i128>,
    /// offered - passed, with the qdisc empty.
    queue_offset: Option<i128>,
    first_dropped: Option<u64>,
    /// Frames put into the tap by a packet socket, which pass neither hook nor tracepoint.
    injected: u64,
    last: Option<TapSample>,
}

impl TapAccount {
    /// Takes a reading into account.
    pub fn observe(&mut self, sample: TapSample) {
        let ring = i128::from(sample.read) + i128::from(sample.dropped)
            - i128::from(sample.offered_skbs)
            - i128::from(self.injected);
        let queue = i128::from(sample.offered_packets) - i128::from(sample.passed_packets);
        self.ring_offset = Some(self.ring_offset.map_or(ring, |known| known.max(ring)));
        self.queue_offset = Some(self.queue_offset.map_or(queue, |known| known.max(queue)));
        self.first_dropped.get_or_insert(sample.dropped);
        self.last = Some(sample);
    }

    /// `frames` were put into the tap past the hook. Call it before they can have been read.
    pub fn add_injected(&mut self, frames: u64) {
        self.injected += frames;
    }

    /// The balance at the last reading; `None` before the first.
    #[must_use]
    pub fn balance(&self) -> Option<TapBalance> {
        let sample = self.last?;
        let unread =
            i128::from(sample.offered_skbs) + i128::from(self.injected) + self.ring_offset?
                - i128::from(sample.read)
                - i128::from(sample.dropped);
        let queued = i128::from(sample.passed_packets) + self.queue_offset?
            - i128::from(sample.offered_packets);
        Some(TapBalance {
            not_enqueued: u64::try_from(queued).unwrap_or(0),
            dropped: sample.dropped.saturating_sub(self.first_dropped?),
            unread: u64::try_from(unread).unwrap_or(0),
        })
    }

    /// What [`TapAccount::left`] must come to until everything that was passed by now has left the tap.
    #[must_use]
    pub fn all_left_at(&self) -> Option<u64> {
        let balance = self.balance()?;
        Some(self.left()? + balance.unread + balance.not_enqueued)
    }

    /// skbs that have left the tap's ring (it is first in, first out), or found it full.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        self.last.map(|sample| sample.read + sample.dropped)
    }

    /// Whether QEMU has read everything that was passed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.balance()
            .is_some_and(|b| b.unread == 0 && b.not_enqueued == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(read: u64, offered: u64, passed: u64) -> TapSample {
        TapSample {
            read,
            dropped: 0,
            offered_skbs: offered,
            offered_packets: offered,
            passed_packets: passed,
        }
    }

    #[test]
    fn offsets_are_learned_while_traffic_runs() {
        let mut account = TapAccount::default();
        // Armed with 3 packets in the ring: the first bounds are too low, an empty ring corrects them.
        account.observe(sample(1000, 0, 0));
        account.observe(sample(1002, 1, 1));
        account.observe(sample(1013, 10, 10));
        assert!(account.is_drained());
        account.observe(sample(1013, 12, 15));
        assert_eq!(
            account.balance(),
            Some(TapBalance {
                not_enqueued: 3,
                dropped: 0,
                unread: 2
            })
        );
    }

    #[test]
    fn a_drop_by_the_ring_is_neither_read_nor_unread() {
        let mut account = TapAccount::default();
        account.observe(TapSample {
            read: 5,
            dropped: 2,
            offered_skbs: 0,
            offered_packets: 0,
            passed_packets: 0,
        });
        account.observe(TapSample {
            read: 9,
            dropped: 4,
            offered_skbs: 6,
            offered_packets: 6,
            passed_packets: 6,
        });
        assert_eq!(
            account.balance(),
            Some(TapBalance {
                not_enqueued: 0,
                dropped: 2,
                unread: 0
            })
        );
    }

    #[test]
    fn injected_frames_are_read_but_never_offered() {
        let mut account = TapAccount::default();
        account.observe(sample(0, 0, 0));
        account.add_injected(4);
        account.observe(sample(1, 0, 0));
        assert_eq!(account.balance().map(|b| b.unread), Some(3));
        account.observe(sample(4, 0, 0));
        assert!(account.is_drained());
    }

    #[test]
    fn what_was_passed_by_now_has_left_while_more_comes() {
        let mut account = TapAccount::default();
        account.observe(sample(100, 10, 10));
        account.observe(sample(100, 15, 16));
        let target = account.all_left_at().unwrap();
        account.observe(sample(105, 20, 20));
        assert!(account.left().unwrap() < target);
        account.observe(sample(106, 24, 24));
        assert!(account.left().unwrap() >= target && !account.is_drained());
    }

    #[test]
    fn nothing_is_known_before_the_first_reading() {
        assert_eq!(TapAccount::default().balance(), None);
        assert!(!TapAccount::default().is_drained());
    }
}
