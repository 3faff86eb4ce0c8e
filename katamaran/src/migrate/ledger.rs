//! The packet ledger: what each hop counted. [`super::reconcile`] compares the halves of both nodes.
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
    pub(crate) fn missing(self) -> u64 {
        self.not_enqueued + self.dropped + self.unread
    }

    /// Where what is missing is missing, for people.
    pub(crate) fn places(self) -> impl Iterator<Item = String> {
        [
            ("between the hook and the tap's driver", self.not_enqueued),
            ("refused by the tap's ring", self.dropped),
            ("not read by QEMU", self.unread),
        ]
        .into_iter()
        .filter(|(_, packets)| *packets > 0)
        .map(|(place, packets)| format!("{place} ({packets})"))
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
}

/// The account of an abort, in packets on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// S3: sent to the destination until the redirect was turned off.
    pub redirected: u64,
    /// D1: came there through the tunnel. `None` where nobody could say.
    pub arrived: Option<u64>,
    /// R: given back by the destination, and put into the VM's tap on the source. What had come to the destination
    /// directly, or from a tap that QEMU had left unread, is among them, so there may be more than were redirected.
    pub returned: u64,
    /// Those of them that are copies which the source had retained: the last few, or all that a destination that is gone had.
    #[serde(default)]
    pub from_copies: u64,
}

impl Returned {
    /// Of two network cards.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            redirected: self.redirected + other.redirected,
            arrived: self
                .arrived
                .zip(other.arrived)
                .map(|(one, other)| one + other),
            returned: self.returned + other.returned,
            from_copies: self.from_copies + other.from_copies,
        }
    }

    /// What is missing, in words; `None` when nothing is.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let lost = self.redirected.saturating_sub(self.returned);
        let place = match self.arrived {
            Some(arrived) if arrived < self.redirected => {
                format!("{} of them did not arrive there", self.redirected - arrived)
            }
            Some(_) => "all of them had arrived there".to_owned(),
            None => "how many arrived there is not known".to_owned(),
        };
        (lost > 0).then(|| {
            format!(
                "{lost} of {} packets that were redirected to the destination did not come back; {place}",
                self.redirected
            )
        })
    }
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
    /// The VM stopped with packets unread, or nobody knows: QEMU stopped it by itself, or it read no more. QEMU may then discard a
    /// packet that it had read while the guest's receive ring was full (`qemu_flush_or_purge_queued_packets()`, net/net.c), which
    /// nobody counts.
    pub stopped_unread: bool,
    /// Nobody could look into the tap's ring. Counters alone don't tell a ring that is never empty from one that is.
    pub ring_unseen: bool,
    /// The hook's attachment reset the queue of its device, which the VM's packets were going through.
    pub queue_reset: bool,
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
    /// What the running numbers in the outer headers tell; `None` where no packet has any (vxlan).
    #[serde(default)]
    pub numbers: Option<Numbers>,
    pub tap: Option<TapBalance>,
    pub drops: Option<Vec<DropRecord>>,
}

/// The running numbers of the outer headers, as they arrived: where in the stream something was lost or overtaken. A hint, for
/// several CPUs that receive at once may take a gap for a late packet; the proof is the digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// Packets that had one.
    pub seen: u64,
    /// Numbers never seen; negative: some were seen twice.
    pub missing: i64,
    /// Packets that came after a higher number: overtaken, or again.
    pub late: u64,
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
