//! The packet ledger: what each hop counted, whether it balances, and the verdict.
//!
//! Everything here is a pure function of numbers that were read elsewhere. A number that could not
//! be read is `None` and makes the verdict `unproven`; it is never taken for zero.
//!
//! ```text
//!            S1 arrived at the source's hook
//!           /  \
//!   S2 passed   S3 redirected ──tunnel──▶ D1 arrived through the tunnel
//!      │                                   │   D2 arrived directly
//!   S2' read by QEMU                       D3 = D1 + D2 passed to the tap
//!                                          D3' read by QEMU
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Packets as they are on the wire (a GSO super-packet counts once per segment) and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Where a packet can get lost, in the order in which it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// On the source node, before or at the hook.
    SourceHost,
    /// Between the source's hook and QEMU: qdisc, tap ring.
    SourceTap,
    /// Between the redirect and the destination's hook.
    Tunnel,
    /// On the destination node, before the tap.
    DestinationHost,
    /// Between the destination's hook on the tap and QEMU: qdisc, tap ring.
    DestinationTap,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceHost => "source-host",
            Self::SourceTap => "source-tap",
            Self::Tunnel => "tunnel",
            Self::DestinationHost => "destination-host",
            Self::DestinationTap => "destination-tap",
        })
    }
}

/// Packets of the VM that the kernel said it dropped (`skb:kfree_skb`), by reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRecord {
    pub hop: Hop,
    /// The kernel's name of the reason, without `SKB_DROP_REASON_`.
    pub reason: String,
    /// The kernel function that dropped them.
    pub location: String,
    pub count: u64,
}

/// What lies between the hook on a tap and QEMU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapBalance {
    /// Passed by the hook, but never handed to the tap's driver (lost in a qdisc).
    pub not_enqueued: u64,
    /// Refused by the tap's driver (`tx_dropped`).
    pub dropped: u64,
    /// In the tap's ring, not read by QEMU.
    pub unread: u64,
}

impl TapBalance {
    fn missing(self) -> u64 {
        self.not_enqueued + self.dropped + self.unread
    }
}

/// Packets recovered by hand around an unforeseen stop or an abort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// Read out of the source's tap by us instead of by QEMU.
    pub from_source_tap: u64,
    /// Swallowed by the stopped QEMU, and found among the program's copies.
    pub swallowed: u64,
    /// Swallowed by the stopped QEMU, and found nowhere.
    pub beyond_recovery: u64,
    /// Put into the destination's tap.
    pub into_destination_tap: u64,
    /// Given back to the source by the destination after an abort.
    pub returned: u64,
}

/// The source's half.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLedger {
    pub s1: Option<Count>,
    pub s2: Option<Count>,
    pub s3: Option<Count>,
    pub digest: Option<u64>,
    pub tap: Option<TapBalance>,
    /// Packets that could not be encapsulated and were passed to the stopped VM instead.
    pub encap_failed: Option<u64>,
    pub drops: Option<Vec<DropRecord>>,
    /// QEMU stopped the VM by itself. It may then discard a packet that it had read while the guest's
    /// receive ring was full (`qemu_flush_or_purge_queued_packets()`, net/net.c), which nobody counts.
    pub stopped_by_qemu: bool,
}

/// The destination's half; travels over the session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationLedger {
    pub d1: Option<Count>,
    pub d2: Option<Count>,
    pub d3: Option<Count>,
    /// The part of D3 that came through the tunnel.
    pub d3_tunnel: Option<Count>,
    pub digest: Option<u64>,
    /// Gaps in the running numbers of the outer headers.
    pub numbers_missing: Option<u64>,
    pub tap: Option<TapBalance>,
    pub drops: Option<Vec<DropRecord>>,
}

/// One hop that does not balance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imbalance {
    pub hop: Hop,
    pub lost: u64,
    pub duplicated: u64,
    /// Reasons the kernel gave for this hop, most frequent first.
    pub reasons: Vec<String>,
    /// Numbers agree but contents do not: a loss and a duplicate that cancel out.
    pub altered: bool,
}

/// What the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every counter was read and the ledger balances.
    Proven,
    /// Packets were lost or duplicated.
    Violated,
    /// Nothing is known to be lost, but a counter was missing.
    Unproven,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proven => "proven",
            Self::Violated => "violated",
            Self::Unproven => "unproven",
        })
    }
}

/// Both halves, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    pub verdict: Verdict,
    pub lost: u64,
    pub duplicated: u64,
    pub imbalances: Vec<Imbalance>,
    /// Counters that were not available.
    pub unavailable: Vec<String>,
    /// X: all drops of the VM's packets that the kernels reported.
    pub dropped: Option<u64>,
}

/// Compares both ledgers.
#[must_use]
pub fn reconcile(
    source: &SourceLedger,
    destination: &DestinationLedger,
    recovered: Recovered,
) -> Reconciled {
    let mut unavailable = Vec::new();
    let mut need = |name: &str, known: bool| {
        if !known {
            unavailable.push(name.to_owned());
        }
    };
    need("S1 (source hook)", source.s1.is_some());
    need("S2 (passed on the source)", source.s2.is_some());
    need("S3 (redirected)", source.s3.is_some());
    need("S2' (source tap)", source.tap.is_some());
    need("digest of S3", source.digest.is_some());
    need("kernel drops on the source", source.drops.is_some());
    need(
        "what QEMU discarded when it stopped the VM by itself",
        !source.stopped_by_qemu,
    );
    need("D1 (through the tunnel)", destination.d1.is_some());
    need("D2 (directly)", destination.d2.is_some());
    need("D3 (destination tap hook)", destination.d3.is_some());
    need("D3' (destination tap)", destination.tap.is_some());
    need("digest of D1", destination.digest.is_some());
    need(
        "kernel drops on the destination",
        destination.drops.is_some(),
    );

    let drops: Vec<&DropRecord> = source
        .drops
        .iter()
        .chain(&destination.drops)
        .flatten()
        .collect();
    let s3 = packets(source.s3);
    let d1 = packets(destination.d1);
    let d3_tunnel = packets(destination.d3_tunnel);

    let mut imbalances = Vec::new();
    let mut check = |hop: Hop, balance: Balance| {
        let mut at_hop: Vec<&&DropRecord> = drops.iter().filter(|d| d.hop == hop).collect();
        at_hop.sort_by_key(|d| std::cmp::Reverse(d.count));
        let by_kernel: u64 = at_hop.iter().map(|d| d.count).sum();
        let imbalance = Imbalance {
            hop,
            // A packet that a counter misses and the kernel reports is one packet, not two.
            lost: balance.lost.max(by_kernel),
            duplicated: balance.duplicated,
            reasons: at_hop
                .iter()
                .map(|d| format!("{} in {} ({})", d.reason, d.location, d.count))
                .collect(),
            altered: balance.altered,
        };
        if imbalance.lost > 0 || imbalance.duplicated > 0 || imbalance.altered {
            imbalances.push(imbalance);
        }
    };

    check(
        Hop::SourceHost,
        match (source.s1, source.s2, source.s3) {
            (Some(s1), Some(s2), Some(s3)) => Balance::of(s1.packets, s2.packets + s3.packets),
            _ => Balance::default(),
        },
    );
    // What we read out of the tap counts as read there, but not by QEMU.
    let not_read_by_qemu = source.tap.map_or(0, TapBalance::missing)
        + recovered.from_source_tap
        + recovered.swallowed
        + recovered.beyond_recovery;
    check(
        Hop::SourceTap,
        Balance::of(not_read_by_qemu, recovered.into_destination_tap),
    );
    check(
        Hop::Tunnel,
        match (s3, d1) {
            (Some(s3), Some(d1)) => Balance {
                altered: s3 == d1
                    && matches!((source.digest, destination.digest), (Some(s), Some(d)) if s != d),
                ..Balance::of(s3, d1)
            },
            _ => Balance::default(),
        },
    );
    check(
        Hop::DestinationHost,
        match (d1, d3_tunnel) {
            (Some(d1), Some(d3)) => Balance::of(d1, d3),
            _ => Balance::default(),
        },
    );
    check(
        Hop::DestinationTap,
        Balance {
            lost: destination.tap.map_or(0, TapBalance::missing),
            ..Balance::default()
        },
    );

    let lost = imbalances.iter().map(|i| i.lost).sum();
    let duplicated = imbalances.iter().map(|i| i.duplicated).sum();
    let verdict = if !imbalances.is_empty() {
        Verdict::Violated
    } else if !unavailable.is_empty() {
        Verdict::Unproven
    } else {
        Verdict::Proven
    };
    let dropped = (source.drops.is_some() && destination.drops.is_some())
        .then(|| drops.iter().map(|d| d.count).sum());
    Reconciled {
        verdict,
        lost,
        duplicated,
        imbalances,
        unavailable,
        dropped,
    }
}

fn packets(count: Option<Count>) -> Option<u64> {
    count.map(|c| c.packets)
}

#[derive(Default)]
struct Balance {
    lost: u64,
    duplicated: u64,
    altered: bool,
}

impl Balance {
    fn of(sent: u64, arrived: u64) -> Self {
        Self {
            lost: sent.saturating_sub(arrived),
            duplicated: arrived.saturating_sub(sent),
            altered: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(packets: u64) -> Option<Count> {
        Some(Count {
            packets,
            bytes: packets * 100,
        })
    }

    fn balanced() -> (SourceLedger, DestinationLedger) {
        (
            SourceLedger {
                s1: count(1000),
                s2: count(900),
                s3: count(100),
                digest: Some(7),
                tap: Some(TapBalance::default()),
                encap_failed: Some(0),
                drops: Some(vec![]),
                stopped_by_qemu: false,
            },
            DestinationLedger {
                d1: count(100),
                d2: count(50),
                d3: count(150),
                d3_tunnel: count(100),
                digest: Some(7),
                numbers_missing: Some(0),
                tap: Some(TapBalance::default()),
                drops: Some(vec![]),
            },
        )
    }

    fn verdict(s: &SourceLedger, d: &DestinationLedger) -> Reconciled {
        reconcile(s, d, Recovered::default())
    }

    #[test]
    fn a_balanced_ledger_is_proven() {
        let (s, d) = balanced();
        let r = verdict(&s, &d);
        assert_eq!((r.verdict, r.lost, r.duplicated), (Verdict::Proven, 0, 0));
    }

    #[test]
    fn a_loss_is_told_with_its_number_hop_and_reason() {
        let (s, mut d) = balanced();
        d.d3_tunnel = count(93);
        d.drops = Some(vec![DropRecord {
            hop: Hop::DestinationHost,
            reason: "TC_EGRESS".into(),
            location: "__dev_queue_xmit".into(),
            count: 7,
        }]);
        let r = verdict(&s, &d);
        assert_eq!((r.verdict, r.lost), (Verdict::Violated, 7));
        assert_eq!(r.imbalances[0].hop, Hop::DestinationHost);
        assert!(r.imbalances[0].reasons[0].contains("TC_EGRESS"));
    }

    #[test]
    fn a_loss_and_a_duplicate_do_not_cancel_out() {
        let (s, mut d) = balanced();
        d.digest = Some(8);
        let r = verdict(&s, &d);
        assert_eq!(r.verdict, Verdict::Violated);
        assert!(r.imbalances[0].altered);
    }

    #[test]
    fn duplicates_are_not_losses() {
        let (s, mut d) = balanced();
        d.d1 = count(103);
        d.d3_tunnel = count(103);
        let r = verdict(&s, &d);
        assert_eq!((r.verdict, r.lost, r.duplicated), (Verdict::Violated, 0, 3));
    }

    #[test]
    fn what_is_left_in_a_tap_is_lost_unless_it_was_recovered() {
        let (mut s, d) = balanced();
        s.tap = Some(TapBalance {
            unread: 12,
            ..TapBalance::default()
        });
        assert_eq!(verdict(&s, &d).lost, 12);
        s.tap = Some(TapBalance::default());
        let recovered = Recovered {
            from_source_tap: 11,
            swallowed: 1,
            into_destination_tap: 12,
            ..Recovered::default()
        };
        assert_eq!(reconcile(&s, &d, recovered).verdict, Verdict::Proven);
        let short = Recovered {
            beyond_recovery: 1,
            ..recovered
        };
        assert_eq!(reconcile(&s, &d, short).lost, 1);
    }

    #[test]
    fn a_vm_that_qemu_stopped_by_itself_is_never_proven() {
        let (mut s, d) = balanced();
        s.stopped_by_qemu = true;
        assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
    }

    #[test]
    fn a_drop_that_only_the_kernel_saw_is_a_violation() {
        let (mut s, d) = balanced();
        s.drops = Some(vec![DropRecord {
            hop: Hop::SourceHost,
            reason: "NETFILTER_DROP".into(),
            location: "nf_hook_slow".into(),
            count: 2,
        }]);
        assert_eq!(verdict(&s, &d).lost, 2);
    }

    #[test]
    fn a_counter_that_was_not_read_is_never_a_zero() {
        let (s, mut d) = balanced();
        d.drops = None;
        let r = verdict(&s, &d);
        assert_eq!((r.verdict, r.dropped), (Verdict::Unproven, None));
        assert_eq!(r.unavailable, ["kernel drops on the destination"]);
        d.d1 = None;
        assert_eq!(verdict(&s, &d).verdict, Verdict::Unproven);
    }
}
