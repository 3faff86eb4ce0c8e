//! The data path for one of the VM's network cards, from the moment when it stands.

use std::sync::{Arc, Mutex};

use crate::ebpf::FlipTime;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::ledger::{Recovered, TapBalance};
use crate::migrate::tap_watch::{SharedWatch, TapWatch, lock};
use crate::net::tap::TapCounters;
use crate::net::tapfd::TapQueues;

use super::hooks::{Hooks, towards_tap};
use super::kept::Kept;
use super::prepare::Way;

/// One card: packets are counted, and can be turned.
pub(crate) struct Lane {
    /// Its place among the VM's cards, by which the destination knows it.
    pub(crate) number: usize,
    pub(crate) way: Way,
    pub(crate) hooks: Option<Hooks>,
    pub(crate) watch: SharedWatch,
    /// The VM's packets that were on their way to the tap when the hook was attached before them.
    pub(crate) past_hook: u64,
    /// What was recovered from the tap, until the VM runs somewhere.
    pub(crate) kept: Kept,
    pub(crate) recovered: Recovered,
    /// How the tap stood when the VM had stopped.
    pub(crate) stopped: Option<StoppedTap>,
}

/// A tap whose VM has stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoppedTap {
    /// What had gone to the tap ([`towards_tap`]) then, and the tap's balance.
    pub(crate) drained: Option<(u64, TapBalance)>,
    /// With packets unread in it.
    pub(crate) unread: bool,
    /// Nobody could look into its ring.
    pub(crate) ring_unseen: bool,
}

impl Lane {
    pub(crate) fn new(number: usize, way: Way, hooks: Option<Hooks>) -> Result<Self, MigrateError> {
        let counters = TapCounters::open(&way.nic.tap_netns, way.nic.tap.index)
            .doing("read the tap's counters")?;
        let lane = Self {
            number,
            way,
            past_hook: hooks.as_ref().map_or(0, Hooks::past_hook),
            hooks,
            watch: Arc::new(Mutex::new(TapWatch::new(counters))),
            kept: Kept::default(),
            recovered: Recovered::default(),
            stopped: None,
        };
        // The first reading says how the counters stand to each other, so the earlier the better.
        lane.observe();
        Ok(lane)
    }

    /// Takes a reading of the tap.
    pub(crate) fn observe(&self) {
        if let Some(hooks) = &self.hooks {
            lock(&self.watch).observe(hooks);
        }
    }

    /// Turns every further packet. Returns when, by the clock that the programs use.
    pub(crate) fn flip(&self) -> Result<Option<FlipTime>, MigrateError> {
        match &self.hooks {
            Some(hooks) => Ok(Some(hooks.flip().doing("flip to REDIRECT")?)),
            None => Ok(None),
        }
    }

    /// What has gone to the tap, and its balance, now.
    pub(crate) fn balance(&self) -> Option<(u64, TapBalance)> {
        let hooks = self.hooks.as_ref()?;
        self.observe();
        let passed = towards_tap(&hooks.counters().ok()?);
        let balance = lock(&self.watch).balance()?;
        Some((passed, balance))
    }

    /// QEMU's own descriptors of the tap, to look into its ring with.
    pub(crate) fn queues(&self, qemu_pid: Option<i32>) -> Result<Arc<TapQueues>, MigrateError> {
        let pid = qemu_pid.ok_or(MigrateError::OutOfStep {
            what: "a QEMU without a process id",
        })?;
        let tap = crate::discover::tap(pid, Some(&self.way.nic.tap.name))?;
        let queues = TapQueues::duplicate_fds(pid, &tap.name, &tap.descriptors)
            .doing("duplicate QEMU's tap descriptor")?;
        Ok(Arc::new(queues))
    }
}
