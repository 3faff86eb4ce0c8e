//! Compares both halves of the ledger: does it balance, where not, and the verdict.
//!
//! A pure function of numbers that were read elsewhere. A number that could not be read is `None` and
//! makes the verdict `unproven`; it is never taken for zero.
//!
//! Two witnesses tell of a loss: counters that do not agree, and the kernels' own reports of drops. A
//! packet that a counter misses and a kernel reports is one packet, not two, so for every hop it matters
//! which of its drops the counters can see. What is dropped ahead of a node's hook was never counted.

use serde::{Deserialize, Serialize};

use super::ledger::{
    Count, DestinationLedger, DropRecord, Hop, Imbalance, Recovered, SourceLedger, TapBalance,
    Verdict,
};

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
        "what QEMU discarded when the VM stopped with packets unread",
        !source.stopped_unread,
    );
    need(
        "whether the source's tap was empty when the VM stopped",
        !source.ring_unseen,
    );
    need(
        "what the hook's attachment dropped (before Linux 6.6 it resets the queue of its device)",
        !source.queue_reset,
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

    let witness = Witness::new(source, destination);
    for (name, hop, tap) in [
        ("S2' (source tap)", Hop::SourceTap, source.tap),
        (
            "D3' (destination tap)",
            Hop::DestinationTap,
            destination.tap,
        ),
    ] {
        let unseen = witness.unseen(hop, tap);
        if unseen > 0 {
            unavailable.push(format!(
                "{name}: the kernel did not show {unseen} packets on their way from the hook to the tap's driver, \
                 and no drop of them"
            ));
        }
    }
    // The VM runs there, and its tap is alive: what it has not read yet is not lost.
    let waiting = destination.tap.map_or(0, |tap| tap.unread);
    if waiting > 0 {
        unavailable.push(format!(
            "D3' (destination tap): {waiting} packets still wait in the tap's ring: the VM runs, and does not read them"
        ));
    }
    let balances = [
        at_source_host(source, &witness),
        at_source_tap(source, recovered, &witness),
        in_tunnel(source, destination, &witness),
        at_destination_host(destination, &witness),
        at_destination_tap(destination, &witness),
    ];
    let imbalances: Vec<Imbalance> = balances
        .into_iter()
        .filter(|i| i.lost > 0 || i.duplicated > 0 || i.altered)
        .collect();
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
        .then(|| witness.drops.iter().map(|d| d.count).sum());
    Reconciled {
        verdict,
        lost,
        duplicated,
        imbalances,
        unavailable,
        dropped,
    }
}

fn at_source_host(source: &SourceLedger, witness: &Witness<'_>) -> Imbalance {
    let gap = match (source.s1, source.s2, source.s3) {
        (Some(s1), Some(s2), Some(s3)) => Gap::between(s1.packets, s2.packets + s3.packets),
        _ => Gap::default(),
    };
    let ahead = witness.ahead_of_hook(Hop::SourceTap, source.tap);
    let mut reasons = witness.reasons(Hop::SourceHost);
    if ahead > 0 {
        reasons.extend(witness.reasons(Hop::SourceTap));
    }
    Imbalance {
        lost: gap.lost + witness.count(Hop::SourceHost) + ahead,
        ..gap.at(Hop::SourceHost, reasons)
    }
}

fn at_source_tap(source: &SourceLedger, recovered: Recovered, witness: &Witness<'_>) -> Imbalance {
    // What we read out of the tap counts as read there, but not by QEMU.
    let not_read_by_qemu = source.tap.map_or(0, TapBalance::missing)
        - witness.unseen(Hop::SourceTap, source.tap)
        + recovered.from_source_tap
        + recovered.swallowed
        + recovered.beyond_recovery;
    let gap = Gap::between(not_read_by_qemu, recovered.into_destination_tap);
    behind_hook(Hop::SourceTap, gap, source.tap, witness)
}

fn in_tunnel(
    source: &SourceLedger,
    destination: &DestinationLedger,
    witness: &Witness<'_>,
) -> Imbalance {
    let (gap, altered) = match (packets(source.s3), packets(destination.d1)) {
        (Some(s3), Some(d1)) => {
            let differ =
                matches!((source.digest, destination.digest), (Some(s), Some(d)) if s != d);
            (Gap::between(s3, d1), s3 == d1 && differ)
        }
        _ => (Gap::default(), false),
    };
    Imbalance {
        lost: gap.lost.max(witness.count(Hop::Tunnel)),
        altered,
        ..gap.at(Hop::Tunnel, witness.reasons(Hop::Tunnel))
    }
}

fn at_destination_host(destination: &DestinationLedger, witness: &Witness<'_>) -> Imbalance {
    let gap = match (packets(destination.d1), packets(destination.d3_tunnel)) {
        (Some(d1), Some(d3)) => Gap::between(d1, d3),
        _ => Gap::default(),
    };
    let ahead = witness.ahead_of_hook(Hop::DestinationTap, destination.tap);
    let mut reasons = witness.reasons(Hop::DestinationHost);
    if ahead > 0 {
        reasons.extend(witness.reasons(Hop::DestinationTap));
    }
    Imbalance {
        // Ahead of the hook is also where what came through the tunnel gets lost after D1.
        lost: gap.lost.max(ahead) + witness.count(Hop::DestinationHost),
        ..gap.at(Hop::DestinationHost, reasons)
    }
}

fn at_destination_tap(destination: &DestinationLedger, witness: &Witness<'_>) -> Imbalance {
    let read_or_lost = destination.tap.map(|tap| TapBalance { unread: 0, ..tap });
    let gap = Gap {
        lost: read_or_lost.map_or(0, TapBalance::missing)
            - witness.unseen(Hop::DestinationTap, read_or_lost),
        duplicated: 0,
    };
    behind_hook(Hop::DestinationTap, gap, read_or_lost, witness)
}

/// The tap's own balance, with the drops that it explains.
fn behind_hook(hop: Hop, gap: Gap, tap: Option<TapBalance>, witness: &Witness<'_>) -> Imbalance {
    let behind = witness.count(hop) - witness.ahead_of_hook(hop, tap);
    let mut reasons = if behind > 0 {
        witness.reasons(hop)
    } else {
        Vec::new()
    };
    // What no kernel gives a reason for, the counters still place.
    if gap.lost > behind {
        reasons.extend(tap.into_iter().flat_map(TapBalance::places));
    }
    Imbalance {
        lost: gap.lost.max(behind),
        ..gap.at(hop, reasons)
    }
}

fn packets(count: Option<Count>) -> Option<u64> {
    count.map(|c| c.packets)
}

/// What the kernels of both nodes reported.
struct Witness<'a> {
    /// The most frequent first.
    drops: Vec<&'a DropRecord>,
}

impl<'a> Witness<'a> {
    fn new(source: &'a SourceLedger, destination: &'a DestinationLedger) -> Self {
        let mut drops: Vec<&DropRecord> = source
            .drops
            .iter()
            .chain(&destination.drops)
            .flatten()
            .collect();
        drops.sort_by_key(|d| std::cmp::Reverse(d.count));
        Self { drops }
    }

    fn at(&self, hop: Hop) -> impl Iterator<Item = &DropRecord> {
        self.drops.iter().copied().filter(move |d| d.hop == hop)
    }

    fn count(&self, hop: Hop) -> u64 {
        self.at(hop).map(|d| d.count).sum()
    }

    fn reasons(&self, hop: Hop) -> Vec<String> {
        self.at(hop)
            .map(|d| format!("{} in {} ({})", d.reason, d.location, d.count))
            .collect()
    }

    /// What the driver was not offered, though no drop explains it: lost, or missed by the tracepoint's program.
    /// What QEMU was seen to have read all the same is not among it ([`super::tap_account`]).
    fn unseen(&self, tap_hop: Hop, tap: Option<TapBalance>) -> u64 {
        tap.map_or(0, |tap| {
            tap.not_enqueued.saturating_sub(self.count(tap_hop))
        })
    }

    /// Drops at a tap that did not happen between the hook and QEMU: the counters would miss them there.
    /// So it was before the hook: another program, a filter, a neighbour that was not known.
    fn ahead_of_hook(&self, tap_hop: Hop, tap: Option<TapBalance>) -> u64 {
        tap.map_or(0, |tap| {
            self.count(tap_hop)
                .saturating_sub(tap.not_enqueued + tap.dropped)
        })
    }
}

/// What two counters say that should be equal.
#[derive(Default, Clone, Copy)]
struct Gap {
    lost: u64,
    duplicated: u64,
}

impl Gap {
    fn between(sent: u64, arrived: u64) -> Self {
        Self {
            lost: sent.saturating_sub(arrived),
            duplicated: arrived.saturating_sub(sent),
        }
    }

    fn at(self, hop: Hop, reasons: Vec<String>) -> Imbalance {
        Imbalance {
            hop,
            lost: self.lost,
            duplicated: self.duplicated,
            reasons,
            altered: false,
        }
    }
}

#[cfg(test)]
mod tests;
