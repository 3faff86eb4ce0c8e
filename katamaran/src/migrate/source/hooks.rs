//! The source's data path, shared by the steps that poll it and the undo step that removes it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::ebpf::{
    Count, EbpfError, FlipTime, Offered, PacketDrop, RetainedPacket, SourceCounters,
    SourceDataplane,
};
use crate::migrate::tap_watch::HookCounts;
use crate::net::NetNs;

/// The attached programs; removed by whoever comes first, undo or finish.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    dataplane: Arc<Mutex<Option<SourceDataplane>>>,
    netns: NetNs,
    /// Where redirected packets leave as frames, if they do.
    tunnel_device: Option<u32>,
}

impl Hooks {
    pub(crate) fn new(
        dataplane: SourceDataplane,
        netns: NetNs,
        tunnel_device: Option<u32>,
    ) -> Self {
        Self {
            dataplane: Arc::new(Mutex::new(Some(dataplane))),
            netns,
            tunnel_device,
        }
    }

    pub(crate) fn tunnel_device(&self) -> Option<u32> {
        self.tunnel_device
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut SourceDataplane) -> T) -> Option<T> {
        self.dataplane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .map(work)
    }

    pub(crate) fn drops(&self) -> Option<Vec<PacketDrop>> {
        self.with(|d| d.drops())?.ok()?
    }

    /// The single point in packet order where traffic turns.
    pub(crate) fn flip(&self) -> Result<FlipTime, EbpfError> {
        self.with(|d| d.flip()).unwrap_or_else(removed)
    }

    pub(crate) fn redirects(&self) -> bool {
        self.with(|d| d.redirects()).unwrap_or(false)
    }

    pub(crate) fn unflip(&self) -> Result<(), EbpfError> {
        self.with(|d| d.unflip().map(|_| ())).unwrap_or(Ok(()))
    }

    /// Takes out the oldest packet that was redirected since the flip; `None` when there are no more.
    pub(crate) fn next_retained(&self) -> Option<RetainedPacket> {
        self.with(|d| d.next_retained())?
    }

    pub(crate) fn stop_retaining(&self) -> Result<(), EbpfError> {
        self.with(|d| d.stop_retaining()).unwrap_or(Ok(()))
    }

    pub(crate) fn counters(&self) -> Result<SourceCounters, EbpfError> {
        self.with(|d| d.counters()).unwrap_or_else(removed)
    }

    /// The VM's packets that its tap was offered more than the hook has passed; what is between the two hides some.
    pub(crate) fn past_hook(&self) -> u64 {
        self.counters().map_or(0, |counters| past_hook(&counters))
    }

    /// Detaches and unpins everything. Idempotent.
    pub(crate) fn remove(&self) -> Result<(), String> {
        let dataplane = self
            .dataplane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match dataplane {
            None => Ok(()),
            Some(dataplane) => match self.netns.run(move || dataplane.remove()) {
                Ok(removed) => removed.map_err(|e| crate::migrate::error::chain(&e)),
                Err(e) => Err(crate::migrate::error::chain(&e)),
            },
        }
    }
}

/// The VM's packets that went towards its tap: that the hook passed, or that came there past it.
pub(crate) fn towards_tap(counters: &SourceCounters) -> u64 {
    counters.s2.packets + past_hook(counters)
}

/// The VM's packets that reached the tap's driver, and that the hook did not pass.
fn past_hook(counters: &SourceCounters) -> u64 {
    let offered = counters.offered.map_or(0, |offered| offered.vm.packets);
    offered.saturating_sub(counters.s2.packets)
}

impl HookCounts for Hooks {
    fn offered(&self) -> Option<Offered> {
        self.counters().ok()?.offered
    }

    fn passed(&self) -> Option<Count> {
        Some(self.counters().ok()?.s2)
    }
}

fn removed<T>() -> Result<T, EbpfError> {
    Err(EbpfError::Missing {
        kind: "program",
        name: "(removed already)",
    })
}
