//! Reading the counters: per-CPU values, summed.

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use katamaran_common::counter::{Counter, Digest, Stamp};
use katamaran_common::layout::{Count, Sequence};
use katamaran_common::names;

use super::error::EbpfError;
use super::object;

/// What the source has counted since it was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceCounters {
    /// S1: arrived at the hook for V.
    pub s1: Count,
    /// S2: passed on towards V's tap.
    pub s2: Count,
    /// S3: redirected to D.
    pub s3: Count,
    /// Seen at the hook, not V's.
    pub other: Count,
    /// Part of S2: should have been redirected, but could not be encapsulated.
    pub encap_failed: Count,
    /// Part of S2: should have been redirected, but does not fit the path and there is no device for
    /// such packets.
    pub too_big: Count,
    /// Part of S3: no copy was retained.
    pub not_retained: Count,
    /// Neighbour requests answered in V's stead.
    pub neighbours_answered: Count,
    /// Handed to the driver of the tap. `None`: the kernel can't be asked.
    pub offered: Option<Offered>,
    /// Digest of all that was redirected.
    pub digest_s3: u64,
    /// When the latest packet was passed on, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_passed_ns: Option<u64>,
    /// When the first packet since the flip was redirected.
    pub first_redirected_ns: Option<u64>,
    /// When the latest packet was redirected.
    pub last_redirected_ns: Option<u64>,
}

/// What the destination has counted since it was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationCounters {
    /// D1: arrived through the tunnel, taken out and sent to V's device.
    pub d1: Count,
    /// D2: reached V's device without the tunnel.
    pub d2: Count,
    /// D3: reached V's device.
    pub d3: Count,
    /// The part of D3 that came through the tunnel.
    pub d3_tunnelled: Count,
    /// Seen at the tunnel's hook, not ours.
    pub deliver_other: Count,
    /// Ours, but could not be taken out of the tunnel.
    pub decap_failed: Count,
    /// Seen on V's device, not V's.
    pub tap_other: Count,
    /// Handed to the driver of the tap. `None`: the kernel can't be asked.
    pub offered: Option<Offered>,
    /// Digest of D1.
    pub digest_d1: u64,
    /// Digest of D3.
    pub digest_d3: u64,
    /// When the latest packet came through the tunnel, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_tunnelled_ns: Option<u64>,
    /// What the numbers in the outer IPv4 headers tell.
    pub sequence_v4: SequenceCounters,
    /// What the numbers in the outer IPv6 headers tell.
    pub sequence_v6: SequenceCounters,
}

/// What the driver of the tap was handed, except what a packet socket with `PACKET_QDISC_BYPASS` put there:
/// that is seen by no hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// For V.
    pub vm: Count,
    /// Not for V; not looked into: each skb counts as one packet.
    pub other: Count,
}

impl Offered {
    /// All of them: what takes a slot in the tap's ring.
    #[must_use]
    pub fn skbs(&self) -> u64 {
        self.vm.skbs + self.other.skbs
    }
}

/// What running numbers tell: where in the stream to look. The proof is the digest.
///
/// `seen` and `missing` are exact, whichever CPUs receive; `late` also counts what one CPU noted before another that had
/// received earlier. A NIC that segments encapsulated super-packets with a fixed outer number shows gaps that are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceCounters {
    /// Packets seen.
    pub seen: u64,
    /// Packets skipped when the number jumped ahead.
    pub skipped: u64,
    /// Packets that came after a higher number: late, or again.
    pub late: u64,
    /// Numbers never seen; negative: some were seen twice.
    pub missing: i64,
}

impl From<Sequence> for SequenceCounters {
    fn from(sequence: Sequence) -> Self {
        Self {
            seen: sequence.seen,
            skipped: sequence.skipped,
            late: sequence.late,
            missing: sequence.missing(),
        }
    }
}

/// The maps that counters live in.
pub(super) struct CounterMaps {
    counts: PerCpuArray<MapData, Count>,
    digests: PerCpuArray<MapData, u64>,
    stamps: PerCpuArray<MapData, u64>,
    sequences: Array<MapData, Sequence>,
}

impl CounterMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            counts: object::map(ebpf, names::MAP_COUNTS)?,
            digests: object::map(ebpf, names::MAP_DIGESTS)?,
            stamps: object::map(ebpf, names::MAP_STAMPS)?,
            sequences: object::map(ebpf, names::MAP_SEQUENCE)?,
        })
    }

    fn count(&self, counter: Counter) -> Result<Count, EbpfError> {
        sum(&self.counts, counter)
    }

    fn digest(&self, digest: Digest) -> Result<u64, EbpfError> {
        let per_cpu = self
            .digests
            .get(&digest.index(), 0)
            .map_err(EbpfError::map("read", names::MAP_DIGESTS))?;
        Ok(per_cpu
            .iter()
            .fold(0, |sum, one| u64::wrapping_add(sum, *one)))
    }

    fn stamps(&self, stamp: Stamp) -> Result<impl Iterator<Item = u64>, EbpfError> {
        let per_cpu = self
            .stamps
            .get(&stamp.index(), 0)
            .map_err(EbpfError::map("read", names::MAP_STAMPS))?;
        Ok(per_cpu
            .iter()
            .copied()
            .filter(|ns| *ns != 0)
            .collect::<Vec<_>>()
            .into_iter())
    }

    fn sequence(&self, family: u32) -> Result<SequenceCounters, EbpfError> {
        let sequence = self
            .sequences
            .get(&family, 0)
            .map_err(EbpfError::map("read", names::MAP_SEQUENCE))?;
        Ok(sequence.into())
    }

    fn offered(&self, witnessed: bool) -> Result<Option<Offered>, EbpfError> {
        if !witnessed {
            return Ok(None);
        }
        Ok(Some(Offered {
            vm: self.count(Counter::Offered)?,
            other: self.count(Counter::OfferedOther)?,
        }))
    }

    /// The latest packet that was redirected.
    pub(super) fn last_redirected(&self) -> Result<Option<u64>, EbpfError> {
        Ok(self.stamps(Stamp::LastRedirected)?.max())
    }

    /// Forgets the first packet that was redirected, for the next flip.
    pub(super) fn forget_first_redirected(&mut self) -> Result<(), EbpfError> {
        let map = names::MAP_STAMPS;
        let failed = EbpfError::map("write", map);
        let cpus = nr_cpus().map_err(|(_, error)| failed(error.into()))?;
        let zeros = PerCpuValues::try_from(vec![0; cpus]).map_err(|error| failed(error.into()))?;
        self.stamps
            .set(Stamp::FirstRedirected.index(), zeros, 0)
            .map_err(failed)
    }

    pub(super) fn source(&self, witnessed: bool) -> Result<SourceCounters, EbpfError> {
        Ok(SourceCounters {
            s1: self.count(Counter::Arrived)?,
            s2: self.count(Counter::Passed)?,
            s3: self.count(Counter::Redirected)?,
            other: self.count(Counter::SourceOther)?,
            encap_failed: self.count(Counter::EncapFailed)?,
            too_big: self.count(Counter::TooBig)?,
            not_retained: self.count(Counter::NotRetained)?,
            neighbours_answered: self.count(Counter::NeighbourAnswered)?,
            offered: self.offered(witnessed)?,
            digest_s3: self.digest(Digest::Redirected)?,
            last_passed_ns: self.stamps(Stamp::LastPassed)?.max(),
            first_redirected_ns: self.stamps(Stamp::FirstRedirected)?.min(),
            last_redirected_ns: self.last_redirected()?,
        })
    }

    pub(super) fn destination(&self, witnessed: bool) -> Result<DestinationCounters, EbpfError> {
        let d2 = self.count(Counter::TapDirect)?;
        let d3_tunnelled = self.count(Counter::TapTunnelled)?;
        Ok(DestinationCounters {
            d1: self.count(Counter::Tunnelled)?,
            d2,
            d3: add(d2, d3_tunnelled),
            d3_tunnelled,
            deliver_other: self.count(Counter::DeliverOther)?,
            decap_failed: self.count(Counter::DecapFailed)?,
            tap_other: self.count(Counter::TapOther)?,
            offered: self.offered(witnessed)?,
            digest_d1: self.digest(Digest::Tunnelled)?,
            digest_d3: self.digest(Digest::Tap)?,
            last_tunnelled_ns: self.stamps(Stamp::LastTunnelled)?.max(),
            sequence_v4: self.sequence(0)?,
            sequence_v6: self.sequence(1)?,
        })
    }
}

/// One counter, of all CPUs.
pub(super) fn sum(
    counts: &PerCpuArray<MapData, Count>,
    counter: Counter,
) -> Result<Count, EbpfError> {
    let per_cpu = counts
        .get(&counter.index(), 0)
        .map_err(EbpfError::map("read", names::MAP_COUNTS))?;
    Ok(per_cpu
        .iter()
        .fold(Count::default(), |sum, one| add(sum, *one)))
}

fn add(one: Count, other: Count) -> Count {
    Count {
        skbs: one.skbs + other.skbs,
        packets: one.packets + other.packets,
        bytes: one.bytes + other.bytes,
    }
}
