//! Balances what a hook passed to a tap against what QEMU has read from it.
//!
//! Three counters that nobody can read at one instant: packets that the TC hook passed, packets
//! that reached the tap's driver (`net_dev_start_xmit`), packets that user space read
//! (`tx_packets`, counted in `tun_put_user()`, drivers/net/tun.c). Each starts at some unknown
//! offset of the others, because traffic runs while they are armed. Read in the order *downstream
//! first*, every reading gives a lower bound of the offset, and the exact value whenever nothing is
//! in between; so the largest bound seen is the offset.
//!
//! The tracepoint may miss skbs: the kernel skips a tracing program that would interrupt itself, and this
//! repository's CI kernel runs none while a process of its sandbox is current. What it missed and QEMU has read
//! shows twice: between hook and driver it is missing, and from the driver to QEMU it is one too many. Where both
//! come to the same, nothing is missing; in flight it would show in the first place only. By chance they come to the same
//! when packets were dropped, and as many lay in the ring before the first reading; so it has to stay true.

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
    /// What is the VM's of what was handed to the tap's driver.
    pub offered: Amount,
    /// What is the VM's of what the hook passed. Others may be dropped on the way from there to the driver, and
    /// are: the kernel's own multicast, while a device has just come up.
    pub passed: Amount,
}

/// An amount of traffic. An skb of several segments stays one where the tap takes it whole, and is cut into as many
/// as it has packets where not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub skbs: u64,
    /// On the wire.
    pub packets: u64,
}

impl TapSample {
    fn queue(&self) -> i128 {
        i128::from(self.offered.packets) - i128::from(self.passed.packets)
    }

    fn queue_skbs(&self) -> i128 {
        i128::from(self.offered.skbs) - i128::from(self.passed.skbs)
    }
}

/// For so many packets what the tracepoint seems to have missed has to stay the same until it is taken for granted.
const CONFIRMED: u64 = 256;

/// What the tracepoint seems to have missed.
#[derive(Debug, Clone, Copy)]
struct Missed {
    /// One too many each, behind the driver.
    too_many: i128,
    /// Missing between hook and driver.
    packets: i128,
    /// What the hook had passed when it began to be so.
    since: u64,
}

/// The running balance of one tap.
#[derive(Debug, Clone, Default)]
pub struct TapAccount {
    /// read + dropped - offered, with the ring empty.
    ring_offset: Option<i128>,
    /// `ring_offset` as it was known when hook and driver last agreed.
    ring_offset_agreed: i128,
    /// offered - passed, in packets, with the qdisc empty.
    queue_offset: Option<i128>,
    /// The same in skbs.
    queue_offset_skbs: Option<i128>,
    missed: Option<Missed>,
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
        self.ring_offset = self.ring_offset.max(Some(ring));
        self.queue_offset = self.queue_offset.max(Some(sample.queue()));
        self.queue_offset_skbs = self.queue_offset_skbs.max(Some(sample.queue_skbs()));
        self.first_dropped.get_or_insert(sample.dropped);
        self.last = Some(sample);
        self.allow_for_missed(sample);
    }

    /// Takes for missed by the tracepoint what is missing at the driver and too many behind it.
    fn allow_for_missed(&mut self, sample: TapSample) {
        let (Some(ring), Some(queue), Some(queue_skbs)) =
            (self.ring_offset, self.queue_offset, self.queue_offset_skbs)
        else {
            return;
        };
        let too_many = ring - self.ring_offset_agreed;
        let missing = [queue - sample.queue(), queue_skbs - sample.queue_skbs()];
        let passed = sample.passed.packets;
        let same = self.missed.filter(|missed| missed.too_many == too_many);
        let since = same.map_or(passed, |missed| missed.since);
        let is_missed = too_many > 0 && missing.contains(&too_many);
        if missing[0] == 0 || (is_missed && passed.saturating_sub(since) >= CONFIRMED) {
            self.missed = None;
            self.ring_offset_agreed = ring;
            self.queue_offset = Some(sample.queue());
            self.queue_offset_skbs = Some(sample.queue_skbs());
        } else if is_missed {
            self.missed = Some(Missed {
                too_many,
                packets: missing[0],
                since,
            });
        } else if self.unread(sample) == Some(0) {
            self.missed = None;
        }
    }

    /// `frames` were put into the tap past the hook. Call it before they can have been read.
    pub fn add_injected(&mut self, frames: u64) {
        self.injected += frames;
    }

    /// The balance at the last reading; `None` before the first.
    #[must_use]
    pub fn balance(&self) -> Option<TapBalance> {
        let sample = self.last?;
        let unread = self.unread(sample)?;
        let missed = self.missed.map_or(0, |missed| missed.packets);
        let queued = self.queue_offset? - sample.queue() - missed;
        Some(TapBalance {
            not_enqueued: u64::try_from(queued).unwrap_or(0),
            dropped: sample.dropped.saturating_sub(self.first_dropped?),
            unread: u64::try_from(unread).unwrap_or(0),
        })
    }

    /// skbs in the ring.
    fn unread(&self, sample: TapSample) -> Option<i128> {
        let put_in =
            i128::from(sample.offered_skbs) + i128::from(self.injected) + self.ring_offset?;
        Some(put_in - i128::from(sample.read) - i128::from(sample.dropped))
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

    /// One packet to an skb.
    fn small(packets: u64) -> Amount {
        Amount {
            skbs: packets,
            packets,
        }
    }

    fn sample(read: u64, offered: u64, passed: u64) -> TapSample {
        TapSample {
            read,
            dropped: 0,
            offered_skbs: offered,
            offered: small(offered),
            passed: small(passed),
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
            offered: small(0),
            passed: small(0),
        });
        account.observe(TapSample {
            read: 9,
            dropped: 4,
            offered_skbs: 6,
            offered: small(6),
            passed: small(6),
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
    fn what_the_tracepoint_missed_and_qemu_has_read_is_not_missing() {
        let mut account = TapAccount::default();
        account.observe(sample(100, 10, 10));
        // 45 were passed, and the tracepoint saw none of them; QEMU reads them one by one.
        for read in 100..145 {
            account.observe(sample(read, 10, 55));
            assert!(!account.is_drained(), "{read}");
        }
        account.observe(sample(145, 10, 55));
        assert!(account.is_drained());
        // From then on it counts as before.
        account.observe(sample(145, 12, 60));
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
    fn a_super_packet_that_was_missed_is_one_skb_to_qemu() {
        let mut account = TapAccount::default();
        let super_packets = |offered: u64, passed: u64| {
            let amount = |skbs| Amount {
                skbs,
                packets: skbs * 45,
            };
            TapSample {
                offered: amount(offered),
                passed: amount(passed),
                ..sample(passed, offered, 0)
            }
        };
        account.observe(super_packets(3, 3));
        account.observe(super_packets(3, 4));
        assert!(account.is_drained());
    }

    #[test]
    fn what_was_lost_beside_what_was_missed_stays_lost() {
        let mut account = TapAccount::default();
        account.observe(sample(100, 10, 10));
        // Ten passed: three were missed by the tracepoint and read, two never came.
        account.observe(sample(108, 15, 20));
        assert_eq!(account.balance().map(|b| b.not_enqueued), Some(5));
    }

    #[test]
    fn a_coincidence_heals_when_what_was_in_flight_arrives() {
        let mut account = TapAccount::default();
        // Two were in the ring at first, so the offset is learned too low.
        account.observe(sample(100, 10, 10));
        account.observe(sample(104, 12, 14));
        assert!(account.is_drained());
        account.observe(sample(106, 14, 16));
        account.observe(sample(106, 14, 20));
        assert_eq!(account.balance().map(|b| b.not_enqueued), Some(6));
        account.observe(sample(112, 20, 20));
        assert!(account.is_drained());
        account.observe(sample(112, 20, 21));
        assert_eq!(account.balance().map(|b| b.not_enqueued), Some(1));
    }

    /// Three were in the ring at first, which is emptied when three have been dropped behind the hook.
    #[test]
    fn drops_are_not_taken_for_missed_because_as_many_were_in_the_ring() {
        let mut account = TapAccount::default();
        account.observe(sample(100, 0, 0));
        account.observe(sample(100, 21, 24));
        account.observe(sample(124, 21, 24));
        for more in 1..100 {
            account.observe(sample(124 + 7 * more, 21 + 7 * more, 24 + 8 * more));
        }
        assert_eq!(account.balance().map(|b| b.not_enqueued), Some(3 + 99));
    }

    #[test]
    fn what_was_missed_for_long_is_missed_for_good() {
        let mut account = TapAccount::default();
        account.observe(sample(100, 0, 0));
        // Two were missed.
        for packets in [10, 100, 300] {
            account.observe(sample(100 + packets, packets - 2, packets));
            assert!(account.is_drained(), "{packets}");
        }
        // And three dropped later on.
        account.observe(sample(497, 395, 400));
        assert_eq!(account.balance().map(|b| b.not_enqueued), Some(3));
    }

    #[test]
    fn nothing_is_known_before_the_first_reading() {
        assert_eq!(TapAccount::default().balance(), None);
        assert!(!TapAccount::default().is_drained());
    }
}
