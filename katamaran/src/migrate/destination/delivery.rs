//! The destination's data path: tunnel end, delivery to the tap, and what holds packets until
//! the VM runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::deadline;
use crate::ebpf::{
    self, AttachPreference, DestinationCounters, DestinationDataplane, DestinationSpec, Ingress,
    Offered, PacketDrop, TapLocation,
};
use crate::migrate::error::{Doing as _, MigrateError, chain};
use crate::migrate::ledger::{Count, DestinationLedger, Hop, Numbers, TapBalance};
use crate::migrate::message::{Arm, Buffer, Held, NicDescription, Tunnel, WireFrame};
use crate::migrate::nic::Nic;
use crate::migrate::node::{inum, refused};
use crate::migrate::rollback::UndoStack;
use crate::migrate::source::{drop_records, inject, outer};
use crate::migrate::tap_watch::{HookCounts, SharedWatch, TapWatch, lock};
use crate::net::NetNs;
use crate::net::link::MacAddr;
use crate::net::packet::FrameInjector;
use crate::net::qdisc::PlugQdisc;
use crate::net::tap::{RaisedQueue, RingEmpty, TapCounters};
use crate::net::tapfd::TapQueues;
use crate::net::vxlan::{Vxlan, VxlanSpec};
use crate::role::Role;
use crate::session_id::SessionId;

/// Packets that the tap must be able to take at one go: a tap never pushes back, and what a
/// release can't fit is lost. 8 bytes each.
pub(crate) const RING: u32 = 131_072;
/// The plug's limit: 10 Gbit/s for the longest pause to expect, and its double for the lead.
const PLUG_BYTES_PER_MS: u64 = 2 * 10_000_000_000 / 8 / 1000;
/// For packets to arrive before the ledger is told, and as long again for QEMU to read them: a guest that is behind
/// needs it, also when the tunnel has lost some and the first wait was in vain.
const LEDGER_SETTLE: Duration = Duration::from_secs(5);
const LEDGER_POLL: Duration = Duration::from_millis(2);

/// The destination's programs; removed by whoever comes first.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    dataplane: Arc<Mutex<Option<DestinationDataplane>>>,
    netns: NetNs,
    /// Where tunnelled packets arrive as frames, if they do.
    tunnel_device: Option<u32>,
}

impl Hooks {
    fn with<T>(&self, work: impl FnOnce(&mut DestinationDataplane) -> T) -> Option<T> {
        self.dataplane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .map(work)
    }

    pub(crate) fn counters(&self) -> Option<DestinationCounters> {
        self.with(|d| d.counters())?.ok()
    }

    fn remove(&self) -> Result<(), String> {
        let dataplane = self
            .dataplane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match dataplane.map(|dataplane| self.netns.run(move || dataplane.remove())) {
            None => Ok(()),
            Some(Ok(removed)) => removed.map_err(|e| chain(&e)),
            Some(Err(e)) => Err(chain(&e)),
        }
    }
}

impl HookCounts for Hooks {
    fn offered(&self) -> Option<Offered> {
        self.counters()?.offered
    }

    fn passed(&self) -> Option<ebpf::Count> {
        Some(self.counters()?.d3)
    }
}

/// What holds packets: the plug, or the ring alone.
#[derive(Debug)]
struct Holding {
    raised: RaisedQueue,
    plug: Option<PlugQdisc>,
}

impl Holding {
    /// No VM runs behind the tap, so nothing is lost by it.
    async fn undo(self) -> Result<(), String> {
        let unplugged = match self.plug {
            Some(plug) => plug.remove(deadline::NETLINK).await.map_err(|e| chain(&e)),
            None => Ok(()),
        };
        unplugged.and(restore(self.raised).await)
    }
}

async fn restore(raised: RaisedQueue) -> Result<(), String> {
    match RingEmpty::by_count(0) {
        Some(empty) => raised.restore(empty).await.map_err(|e| chain(&e)),
        None => Ok(()),
    }
}

/// Everything between the wire and one of the VM's taps.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) nic: Nic,
    hooks: Option<Hooks>,
    watch: SharedWatch,
    holding: Arc<tokio::sync::Mutex<Option<Holding>>>,
    injector: FrameInjector,
    pub(crate) buffer: Buffer,
    /// Keeps the tap and its ring alive from the moment packets are held, so that they can be given back
    /// after the incoming QEMU has ended.
    pub(crate) ring: Option<TapQueues>,
}

impl Delivery {
    /// Sets the data path up; each piece goes onto `undo` with it.
    /// The card goes by `session`.
    pub(crate) async fn arm(
        nic: &Nic,
        session: SessionId,
        vm: &NicDescription,
        arm: &Arm,
        undo: &mut UndoStack,
    ) -> Result<Self, MigrateError> {
        let tap = nic.tap.index;
        let raised = RaisedQueue::raise(&nic.tap_netlink, tap, RING)
            .await
            .doing("lengthen the tap's ring")?;
        let slots = raised.capacity();
        let holding = Arc::new(tokio::sync::Mutex::new(Some(Holding {
            raised,
            plug: None,
        })));
        let undo_holding = holding.clone();
        undo.on_abort(
            "plug and ring of the destination's tap",
            move || async move {
                match undo_holding.lock().await.take() {
                    Some(holding) => holding.undo().await,
                    None => Ok(()),
                }
            },
        );
        let counters = TapCounters::open(&nic.tap_netns, tap).doing("read the tap's counters")?;
        let watch: SharedWatch = Arc::new(Mutex::new(TapWatch::new(counters)));
        // A QEMU that does not run yet takes one packet out of its tap. Let it be one that nobody misses.
        let mut injector =
            FrameInjector::open(&nic.tap_netns, tap).doing("open a packet socket on the tap")?;
        injector
            .bait(MacAddr(vm.mac), session)
            .doing("send the bait frame")?;

        let hooks = match arm.tunnel {
            Tunnel::None => None,
            Tunnel::Ip | Tunnel::Gre | Tunnel::Vxlan { .. } => {
                Some(attach(nic, session, vm, arm, undo).await?)
            }
        };
        let limit_bytes = plug_limit(arm.downtime_limit_ms);
        let buffer = match PlugQdisc::install(&nic.tap_netlink, tap, limit_bytes).await {
            Ok(plug) => {
                if let Some(holding) = holding.lock().await.as_mut() {
                    holding.plug = Some(plug);
                }
                Buffer::Plug { limit_bytes }
            }
            Err(error) if error.unsupported() => Buffer::TapRing { slots },
            Err(error) => return Err(error).doing("install the plug"),
        };
        let delivery = Self {
            nic: nic.clone(),
            hooks,
            watch,
            holding,
            injector,
            buffer,
            ring: None,
        };
        delivery.observe();
        Ok(delivery)
    }

    /// What setting it up has cost others.
    pub(crate) fn cost_to_others(&self) -> Option<String> {
        let has_reset = self.hooks.as_ref()?.with(|d| d.has_reset_the_uplink())?;
        has_reset.then(|| {
            "the queue of the device towards the source was reset for the programs (a kernel before 6.6): what this node had to send at that \
             moment is lost. The next migration finds what it needs there; --tunnel-mode vxlan does without"
                .to_owned()
        })
    }

    pub(crate) fn observe(&self) {
        if let Some(hooks) = &self.hooks {
            lock(&self.watch).observe(hooks);
        }
    }

    /// From now on packets wait.
    pub(crate) async fn block(&self) -> Result<(), MigrateError> {
        let tap = self
            .nic
            .tap_netlink
            .link_by_index(self.nic.tap.index)
            .await
            .doing("look at the tap")?;
        if !(tap.up && tap.carrier) {
            return Err(refused(format!(
                "tap {} has no carrier: nobody has it open, and it would drop every packet",
                tap.name
            )));
        }
        if let Some(plug) = self
            .holding
            .lock()
            .await
            .as_ref()
            .and_then(|h| h.plug.as_ref())
        {
            plug.check_live()
                .await
                .doing("check that the plug is the tap's root qdisc")?;
            plug.block().await.doing("hold packets in the plug")?;
        }
        Ok(())
    }

    /// What is held now.
    async fn held(&self) -> Option<Held> {
        let holding = self.holding.lock().await;
        let plug = holding.as_ref().and_then(|h| h.plug.as_ref());
        if let Some(plug) = plug {
            let stats = plug.stats().await.ok()?;
            return Some(Held {
                packets: stats.qlen.into(),
                bytes: Some(stats.backlog.into()),
                dropped: stats.drops.into(),
            });
        }
        self.observe();
        Some(Held {
            packets: lock(&self.watch).left()?,
            bytes: None,
            dropped: 0,
        })
    }

    /// Lets the held packets go, in order.
    pub(crate) async fn release(&self) -> Result<(), MigrateError> {
        if let Some(plug) = self
            .holding
            .lock()
            .await
            .as_ref()
            .and_then(|h| h.plug.as_ref())
        {
            plug.release_indefinite()
                .await
                .doing("release the held packets")?;
        }
        Ok(())
    }

    /// D1 so far, in packets.
    pub(crate) fn arrived_through_tunnel(&self) -> Option<u64> {
        self.hooks.as_ref()?.counters().map(|c| c.d1.packets)
    }

    /// The VM runs here: plug and ring stay as they are, open and long. Taking either away under traffic
    /// puts the device on the kernel's "noop" qdisc for milliseconds, which drops what arrives.
    pub(crate) async fn keep(&self) -> Result<(), MigrateError> {
        let Some(holding) = self.holding.lock().await.take() else {
            return Ok(());
        };
        holding.raised.keep();
        match holding.plug {
            Some(plug) => plug.keep().await.doing("leave the plug open"),
            None => Ok(()),
        }
    }

    /// Puts recovered packets into the tap, past the plug: they are older than what it holds.
    pub(crate) fn inject(&mut self, frames: &[WireFrame]) -> Result<u64, MigrateError> {
        lock(&self.watch).add_injected(frames.len() as u64);
        inject(&mut self.injector, frames).doing("put recovered packets into the tap")?;
        Ok(frames.len() as u64)
    }

    /// The ledger, as of the moment when the `redirected` packets have arrived; told once QEMU has read
    /// what was passed to it by then. Its tap need not be empty, for the VM's traffic goes on.
    pub(crate) async fn ledger(&self, redirected: Option<u64>) -> DestinationLedger {
        let Some(hooks) = &self.hooks else {
            return DestinationLedger::default();
        };
        let end = Instant::now() + LEDGER_SETTLE;
        let arrived = |c: &DestinationCounters| {
            redirected.is_none_or(|redirected| c.d1.packets >= redirected)
        };
        let counters = loop {
            match hooks.counters() {
                Some(c) if arrived(&c) || Instant::now() >= end => break c,
                None => return DestinationLedger::default(),
                Some(_) => tokio::time::sleep(LEDGER_POLL).await,
            }
        };
        let tap = self.settled_tap(Instant::now() + LEDGER_SETTLE).await;
        self.ledger_of(hooks, &counters, tap)
    }

    /// The tap's balance with what was passed to it before this call: `unread` is what QEMU has not read of
    /// that when `end` comes.
    async fn settled_tap(&self, end: Instant) -> Option<TapBalance> {
        self.observe();
        let target = lock(&self.watch).all_left_at()?;
        loop {
            self.observe();
            let (balance, left, drained) = {
                let watch = lock(&self.watch);
                (watch.balance()?, watch.left()?, watch.is_drained())
            };
            if drained || (left >= target && balance.not_enqueued == 0) {
                return Some(TapBalance {
                    unread: 0,
                    ..balance
                });
            }
            if Instant::now() >= end {
                return Some(TapBalance {
                    unread: balance.unread.min(target.saturating_sub(left)),
                    ..balance
                });
            }
            tokio::time::sleep(LEDGER_POLL).await;
        }
    }

    fn ledger_of(
        &self,
        hooks: &Hooks,
        c: &DestinationCounters,
        tap: Option<TapBalance>,
    ) -> DestinationLedger {
        let count = |c: ebpf::Count| Count {
            packets: c.packets,
            bytes: c.bytes,
        };
        let hop = |drop: &PacketDrop| {
            if drop.tunnel.is_some() || Some(drop.ifindex) == hooks.tunnel_device {
                Hop::Tunnel
            } else if self
                .nic
                .is_behind_last_device(drop.netns_inum, drop.ifindex)
            {
                Hop::DestinationTap
            } else {
                Hop::DestinationHost
            }
        };
        let drops = hooks.with(|d| d.drops()).and_then(Result::ok).flatten();
        let families = [c.sequence_v4, c.sequence_v6];
        let numbers = Numbers {
            seen: families.iter().map(|family| family.seen).sum(),
            missing: families.iter().map(|family| family.missing).sum(),
            late: families.iter().map(|family| family.late).sum(),
        };
        DestinationLedger {
            d1: Some(count(c.d1)),
            d2: Some(count(c.d2)),
            d3: Some(count(c.d3)),
            d3_tunnel: Some(count(c.d3_tunnelled)),
            digest: Some(c.digest_d1),
            numbers: (numbers.seen > 0).then_some(numbers),
            tap,
            drops: drops.map(|drops| drop_records(&drops, hop)),
        }
    }
}

/// What is held for all of the VM's cards.
pub(crate) async fn held(deliveries: &[Delivery]) -> Option<Held> {
    let mut sum: Option<Held> = None;
    for delivery in deliveries {
        let held = delivery.held().await?;
        sum = Some(match sum {
            None => held,
            Some(sum) => Held {
                packets: sum.packets + held.packets,
                bytes: sum.bytes.zip(held.bytes).map(|(one, other)| one + other),
                dropped: sum.dropped + held.dropped,
            },
        });
    }
    sum
}

/// Bytes that the plug may hold for a pause of at most so many milliseconds.
pub(crate) fn plug_limit(downtime_limit_ms: u64) -> u32 {
    u32::try_from(downtime_limit_ms.saturating_mul(PLUG_BYTES_PER_MS)).unwrap_or(u32::MAX)
}

async fn attach(
    nic: &Nic,
    session: SessionId,
    vm: &NicDescription,
    arm: &Arm,
    undo: &mut UndoStack,
) -> Result<Hooks, MigrateError> {
    let last = nic.last_device()?.index;
    let (Some(source), Some(own)) = (
        arm.source_addresses.first(),
        arm.destination_addresses.first(),
    ) else {
        return Err(refused("the source named no addresses of the node network"));
    };
    let underlay = nic
        .netlink
        .underlay(*source)
        .await
        .doing("find the way to the source")?;
    let ingress = match arm.tunnel {
        Tunnel::Vxlan { port } => {
            let spec = VxlanSpec {
                session,
                role: Role::Destination,
                local: *own,
                remote: *source,
                port,
                vm_mtu: vm.tap_mtu,
                txqlen: RING,
            };
            let device = Vxlan::create(&nic.netlink, &spec)
                .await
                .doing("create the vxlan device")?;
            let ifindex = device.index();
            undo.way("destination's vxlan device", move || async move {
                device.remove().await.map_err(|e| chain(&e))
            });
            Ingress::Frames { ifindex }
        }
        Tunnel::Ip | Tunnel::Gre | Tunnel::None => Ingress::Ip {
            outer: outer(arm.tunnel),
            underlay_ifindex: underlay.device,
            local: arm.destination_addresses.clone(),
            remote: arm.source_addresses.clone(),
        },
    };
    let tunnel_device = match &ingress {
        Ingress::Frames { ifindex } => Some(*ifindex),
        Ingress::Ip { .. } => None,
    };
    let spec = DestinationSpec {
        session,
        ingress: vec![ingress],
        vm_addresses: vm.addresses.clone(),
        vm_mac: vm.mac,
        deliver_ifindex: last,
        pod: nic.pod_end().map(|end| nic.in_pod(end)),
        netns_inum: inum(&nic.netns),
        tap: TapLocation {
            netns_inum: inum(&nic.tap_netns),
            ifindex: nic.tap.index,
        },
        attach: AttachPreference::default(),
    };
    let dataplane = nic
        .netns
        .run(move || DestinationDataplane::arm(&spec))
        .doing("enter the node's network namespace")?
        .doing("attach the destination's programs")?;
    let hooks = Hooks {
        dataplane: Arc::new(Mutex::new(Some(dataplane))),
        netns: nic.netns.clone(),
        tunnel_device,
    };
    let undo_hooks = hooks.clone();
    undo.way("destination's programs", move || async move {
        tokio::task::spawn_blocking(move || undo_hooks.remove())
            .await
            .map_err(|e| e.to_string())?
    });
    Ok(hooks)
}
