//! A VM with several network cards: each has a ledger of its own, which balances or does not; here they are put together.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ledger::{
    Count, DestinationLedger, Numbers, Recovered, SourceLedger, TapBalance, Verdict,
};
use super::reconcile::Reconciled;
use super::report::LedgerReport;

/// What became of the packets for one of several network cards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NicReport {
    /// Its tap on the source.
    pub tap: String,
    /// The VM's addresses on it.
    pub addresses: Vec<IpAddr>,
    pub verdict: Verdict,
    /// Why the verdict is not `proven`, when a counter was missing.
    pub unproven: Vec<String>,
    pub ledger: LedgerReport,
}

/// What can be added up. What was not read on one side is not known of the sum.
trait Sum: Sized {
    fn plus(self, other: Self) -> Self;
}

fn both<T>(one: Option<T>, other: Option<T>, plus: impl FnOnce(T, T) -> T) -> Option<T> {
    Some(plus(one?, other?))
}

impl Sum for Count {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Sum for TapBalance {
    fn plus(self, other: Self) -> Self {
        Self {
            not_enqueued: self.not_enqueued + other.not_enqueued,
            dropped: self.dropped + other.dropped,
            unread: self.unread + other.unread,
        }
    }
}

impl Sum for Recovered {
    fn plus(self, other: Self) -> Self {
        Self {
            from_source_tap: self.from_source_tap + other.from_source_tap,
            swallowed: self.swallowed + other.swallowed,
            beyond_recovery: self.beyond_recovery + other.beyond_recovery,
            into_destination_tap: self.into_destination_tap + other.into_destination_tap,
        }
    }
}

impl Sum for Numbers {
    fn plus(self, other: Self) -> Self {
        Self {
            seen: self.seen + other.seen,
            missing: self.missing + other.missing,
            late: self.late + other.late,
        }
    }
}

impl Sum for SourceLedger {
    fn plus(self, other: Self) -> Self {
        Self {
            s1: both(self.s1, other.s1, Count::plus),
            s2: both(self.s2, other.s2, Count::plus),
            s3: both(self.s3, other.s3, Count::plus),
            // The digest of a set of packets is a sum itself.
            digest: both(self.digest, other.digest, u64::wrapping_add),
            tap: both(self.tap, other.tap, TapBalance::plus),
            encap_failed: both(self.encap_failed, other.encap_failed, |a, b| a + b),
            drops: both(self.drops, other.drops, |a, b| [a, b].concat()),
            stopped_unread: self.stopped_unread || other.stopped_unread,
            ring_unseen: self.ring_unseen || other.ring_unseen,
            queue_reset: self.queue_reset || other.queue_reset,
        }
    }
}

impl Sum for DestinationLedger {
    fn plus(self, other: Self) -> Self {
        Self {
            d1: both(self.d1, other.d1, Count::plus),
            d2: both(self.d2, other.d2, Count::plus),
            d3: both(self.d3, other.d3, Count::plus),
            d3_tunnel: both(self.d3_tunnel, other.d3_tunnel, Count::plus),
            digest: both(self.digest, other.digest, u64::wrapping_add),
            numbers: both(self.numbers, other.numbers, Numbers::plus),
            tap: both(self.tap, other.tap, TapBalance::plus),
            drops: both(self.drops, other.drops, |a, b| [a, b].concat()),
        }
    }
}

/// One card's half and half, compared.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    pub(crate) tap: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) source: SourceLedger,
    pub(crate) destination: DestinationLedger,
    pub(crate) recovered: Recovered,
    pub(crate) result: Reconciled,
}

impl Settled {
    fn report(&self) -> LedgerReport {
        let (source, destination) = (self.source.clone(), self.destination.clone());
        LedgerReport::new(source, destination, self.recovered, &self.result)
    }
}

/// The account of the whole VM, and of each card where there are several. It is proven if each card's is.
pub(crate) fn together(
    settled: Vec<Settled>,
) -> Option<(Reconciled, LedgerReport, Vec<NicReport>)> {
    if let [only] = &settled[..] {
        return Some((only.result.clone(), only.report(), Vec::new()));
    }
    let nics = settled.iter().map(|nic| NicReport {
        tap: nic.tap.clone(),
        addresses: nic.addresses.clone(),
        verdict: nic.result.verdict,
        unproven: nic.result.unavailable.clone(),
        ledger: nic.report(),
    });
    let nics: Vec<NicReport> = nics.collect();
    let named = |mut nic: Settled| {
        for what in &mut nic.result.unavailable {
            *what = format!("{}: {what}", nic.tap);
        }
        nic
    };
    let whole = settled
        .into_iter()
        .map(named)
        .reduce(|one, other| Settled {
            tap: one.tap,
            addresses: one.addresses,
            source: one.source.plus(other.source),
            destination: one.destination.plus(other.destination),
            recovered: one.recovered.plus(other.recovered),
            result: join(one.result, other.result),
        })?;
    Some((whole.result.clone(), whole.report(), nics))
}

fn join(one: Reconciled, other: Reconciled) -> Reconciled {
    let verdict = match (one.verdict, other.verdict) {
        (Verdict::Violated, _) | (_, Verdict::Violated) => Verdict::Violated,
        (Verdict::Unproven, _) | (_, Verdict::Unproven) => Verdict::Unproven,
        (Verdict::Proven, Verdict::Proven) => Verdict::Proven,
    };
    Reconciled {
        verdict,
        lost: one.lost + other.lost,
        duplicated: one.duplicated + other.duplicated,
        imbalances: [one.imbalances, other.imbalances].concat(),
        unavailable: [one.unavailable, other.unavailable].concat(),
        dropped: both(one.dropped, other.dropped, |a, b| a + b),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reconcile::reconcile;
    use super::*;

    /// A card with this many packets passed on the source and redirected, and that many through the tunnel.
    fn card(tap: &str, passed: u64, redirected: u64, arrived: u64) -> Settled {
        let count = |packets| {
            Some(Count {
                packets,
                bytes: packets * 100,
            })
        };
        let source = SourceLedger {
            s1: count(passed + redirected),
            s2: count(passed),
            s3: count(redirected),
            digest: Some(redirected.wrapping_mul(u64::MAX / 3)),
            tap: Some(TapBalance::default()),
            encap_failed: Some(0),
            drops: Some(Vec::new()),
            ..SourceLedger::default()
        };
        let destination = DestinationLedger {
            d1: count(arrived),
            d2: count(7),
            d3: count(arrived + 7),
            d3_tunnel: count(arrived),
            digest: Some(arrived.wrapping_mul(u64::MAX / 3)),
            numbers: None,
            tap: Some(TapBalance::default()),
            drops: Some(Vec::new()),
        };
        let recovered = Recovered::default();
        Settled {
            tap: tap.to_owned(),
            addresses: Vec::new(),
            result: reconcile(&source, &destination, recovered),
            source,
            destination,
            recovered,
        }
    }

    #[test]
    fn one_card_is_the_vms() {
        let (result, ledger, nics) = together(vec![card("tap0", 3, 5, 5)]).unwrap();
        assert_eq!(result.verdict, Verdict::Proven);
        assert_eq!(ledger.s3.unwrap().packets, 5);
        assert!(nics.is_empty());
    }

    #[test]
    fn several_are_proven_together_and_told_one_by_one() {
        let (result, ledger, nics) =
            together(vec![card("tap0", 3, 5, 5), card("tap1", 10, 20, 20)]).unwrap();
        assert_eq!(result.verdict, Verdict::Proven);
        assert_eq!(ledger.s1.unwrap().packets, 38);
        assert_eq!(ledger.d3_read, Some(39));
        assert_eq!(ledger.digest_source, ledger.digest_dest);
        let told: Vec<_> = nics
            .iter()
            .map(|nic| (nic.tap.as_str(), nic.verdict))
            .collect();
        assert_eq!(told, [("tap0", Verdict::Proven), ("tap1", Verdict::Proven)]);
    }

    #[test]
    fn a_loss_on_one_does_not_make_up_for_a_copy_on_the_other() {
        let (result, _, nics) =
            together(vec![card("tap0", 3, 5, 4), card("tap1", 3, 5, 6)]).unwrap();
        assert_eq!(result.verdict, Verdict::Violated);
        assert_eq!((result.lost, result.duplicated), (1, 1));
        assert_eq!(nics[0].ledger.lost, 1);
    }

    #[test]
    fn what_was_not_read_of_one_is_not_known_of_the_vm() {
        let mut blind = card("tap1", 3, 5, 5);
        blind.source.tap = None;
        blind.result = reconcile(&blind.source, &blind.destination, blind.recovered);
        let (result, ledger, _) = together(vec![card("tap0", 3, 5, 5), blind]).unwrap();
        assert_eq!(result.verdict, Verdict::Unproven);
        assert_eq!(ledger.s2_read, None);
        assert!(result.unavailable[0].starts_with("tap1: "), "{result:?}");
    }
}
