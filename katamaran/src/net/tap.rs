//! A tap's counters, and a longer ring while packets may pile up in it.
//!
//! A tap never pushes back: what does not fit its ring (`txqueuelen` packets) is dropped and counted
//! in `tx_dropped`; `tx_packets` counts what QEMU has read. So
//! `in the ring = offered - tx_packets - tx_dropped`, and the ring drains as QEMU reads.
//!
//! **Setting `txqueuelen` stops the device for a moment** (3 ms, measured on 6.18): the kernel takes all
//! queueing disciplines off it and drops what arrives meanwhile, counted in `tx_dropped` on recent kernels
//! and nowhere on older ones. Adding, replacing or deleting a root or a clsact queueing discipline
//! does the same. So do it before packets flow, and never at a tap in use.

use super::counters::{CounterReader, LinkCounters};
use super::link::LinkKind;
use super::{NetError, NetNs, Netlink, Result};

/// The lengths of ring, in packets, that kernels allow at most, longest first.
///
/// 524,288: a ring takes 8 bytes for each and is made in one piece of at most 4 MiB; a tap refuses
/// more with the misleading EPERM. 32,767: recent stable kernels (6.12.117 for one) cap every
/// device's `txqueuelen` there and refuse more with ERANGE.
const RING_LIMITS: [u32; 3] = [524_288, 32_767, 16_384];

/// A tap's counters under the names of what they mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapStats {
    /// Packets that QEMU (or vhost) has read, since the tap was created.
    pub read: u64,
    /// Packets that found the ring full, or nobody at the other end.
    pub dropped: u64,
    /// Packets that QEMU has written: what the VM sent.
    pub written: u64,
}

impl From<LinkCounters> for TapStats {
    fn from(counters: LinkCounters) -> Self {
        Self {
            read: counters.tx_packets,
            dropped: counters.tx_dropped,
            written: counters.rx_packets,
        }
    }
}

impl TapStats {
    /// Packets in the ring now, when `offered` were offered to the driver since `earlier`, and
    /// the ring held `in_ring` then. `None` if the counters do not fit together.
    #[must_use]
    pub fn in_ring(&self, earlier: &Self, in_ring: u64, offered: u64) -> Option<u64> {
        let left = self
            .read
            .checked_sub(earlier.read)?
            .checked_add(self.dropped.checked_sub(earlier.dropped)?)?;
        in_ring.checked_add(offered)?.checked_sub(left)
    }
}

/// Reads a tap's counters in about 2 us.
#[derive(Debug)]
pub struct TapCounters(CounterReader);

impl TapCounters {
    /// Opens a reader for the tap with this index.
    ///
    /// # Errors
    /// There is no such device.
    pub fn open(netns: &NetNs, tap: u32) -> Result<Self> {
        CounterReader::open(netns, tap).map(Self)
    }

    /// Reads the counters as they are now.
    ///
    /// # Errors
    /// The tap is gone.
    pub fn read(&mut self) -> Result<TapStats> {
        self.0.read().map(TapStats::from)
    }
}

/// Says that a tap's ring holds nothing, and how that is known: shrinking a ring destroys what does
/// not fit any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct RingEmpty(());

impl RingEmpty {
    /// By counting: `in_ring` as computed by [`TapStats::in_ring`]. `None` unless it is zero.
    pub fn by_count(in_ring: u64) -> Option<Self> {
        (in_ring == 0).then_some(Self(()))
    }

    /// By the descriptors: none of them had anything to read.
    pub(super) fn by_poll() -> Self {
        Self(())
    }
}

/// A tap's ring made longer than it was. [`RaisedQueue::restore`] or [`RaisedQueue::keep`] ends it.
#[derive(Debug)]
#[must_use = "the tap keeps its long ring unless it is restored"]
pub struct RaisedQueue {
    netlink: Netlink,
    name: String,
    tap: u32,
    before: u32,
    now: u32,
    done: bool,
}

impl RaisedQueue {
    /// Makes the ring of tap `tap` hold at least `packets`, or as many as the kernel allows: see
    /// [`RaisedQueue::capacity`]. A ring that is longer already stays as it is.
    ///
    /// # Errors
    /// The device is no tap, is gone, or the kernel refuses each length that is longer than now.
    pub async fn raise(netlink: &Netlink, tap: u32, packets: u32) -> Result<Self> {
        let link = netlink.link_by_index(tap).await?;
        if link.kind != LinkKind::Tun {
            return Err(NetError::WrongKind {
                device: link.name,
                found: link.kind.to_string(),
                wanted: "a tap",
            });
        }
        let now = lengthen(netlink, tap, link.txqlen, packets).await?;
        Ok(Self {
            netlink: netlink.clone(),
            name: link.name,
            tap,
            before: link.txqlen,
            now,
            done: false,
        })
    }

    /// How many packets the ring holds now.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.now
    }

    /// How many it held before.
    #[must_use]
    pub fn previous(&self) -> u32 {
        self.before
    }

    /// Gives the ring its old length back: for a tap that carries no traffic, after an abort. Packets that
    /// arrive in that moment are lost (see the module's description); with a VM running behind the
    /// tap use [`RaisedQueue::keep`].
    ///
    /// That the tap is gone is success. A length that somebody else has set meanwhile is left alone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn restore(mut self, _empty: RingEmpty) -> Result<()> {
        self.done = true;
        let link = match self.netlink.link_by_index(self.tap).await {
            Err(error) if error.already_gone() => return Ok(()),
            other => other?,
        };
        if link.txqlen != self.now || self.now == self.before {
            return Ok(());
        }
        match self.netlink.set_txqlen(self.tap, self.before).await {
            Err(error) if error.already_gone() => Ok(()),
            other => other,
        }
    }

    /// Leaves the ring long: 8 bytes for each packet and queue until the tap ends. Right when the VM
    /// runs behind it, or the ring can't be shown to be empty.
    pub fn keep(mut self) {
        self.done = true;
        tracing::info!(
            tap = %self.name,
            packets = self.now,
            before = self.before,
            "the tap keeps its long ring"
        );
    }
}

/// Returns the new length.
async fn lengthen(netlink: &Netlink, tap: u32, before: u32, wanted: u32) -> Result<u32> {
    let mut lengths = lengths_to_try(before, wanted).peekable();
    while let Some(length) = lengths.next() {
        match netlink.set_txqlen(tap, length).await {
            Ok(()) => return Ok(length),
            Err(error) if error.out_of_range() && lengths.peek().is_some() => {
                tracing::debug!(tap, length, %error, "the ring can't be that long");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(before)
}

fn lengths_to_try(before: u32, wanted: u32) -> impl Iterator<Item = u32> {
    let [most, ..] = RING_LIMITS;
    let first = wanted.min(most);
    std::iter::once(first)
        .chain(RING_LIMITS.into_iter().filter(move |limit| *limit < first))
        .filter(move |length| *length > before)
}

impl Drop for RaisedQueue {
    fn drop(&mut self) {
        if !self.done && self.now != self.before {
            tracing::warn!(tap = %self.name, packets = self.now, "a tap was left with a long ring");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_holds_what_was_neither_read_nor_dropped() {
        let earlier = TapStats {
            read: 10,
            dropped: 2,
            written: 0,
        };
        let now = TapStats {
            read: 15,
            dropped: 3,
            written: 9,
        };
        assert_eq!(now.in_ring(&earlier, 1, 20), Some(15));
        assert_eq!(now.in_ring(&earlier, 0, 6), Some(0));
        assert_eq!(
            now.in_ring(&earlier, 0, 5),
            None,
            "more left than ever came"
        );
        assert_eq!(
            earlier.in_ring(&now, 0, 5),
            None,
            "counters do not run backwards"
        );
        assert!(RingEmpty::by_count(0).is_some());
        assert!(RingEmpty::by_count(1).is_none());
    }

    #[test]
    fn a_ring_is_tried_ever_shorter_but_never_shorter_than_it_is() {
        let try_all = |before, wanted| lengths_to_try(before, wanted).collect::<Vec<_>>();
        assert_eq!(try_all(1000, u32::MAX), RING_LIMITS);
        assert_eq!(try_all(1000, 100_000), [100_000, 32_767, 16_384]);
        assert_eq!(try_all(20_000, 100_000), [100_000, 32_767]);
        assert_eq!(try_all(1000, 5000), [5000]);
        assert!(try_all(9000, 5000).is_empty());
    }
}
