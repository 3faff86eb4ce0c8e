//! A migration that does not commit: what the destination holds of the VM's packets is taken back, and the VM goes on.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::deadline;
use crate::journal::Record;
use crate::migrate::diary::Diary;
use crate::migrate::error::chain;
use crate::migrate::ledger::Returned;
use crate::migrate::message::{Reply, Request, WireFrame};
use crate::migrate::tap_watch::{SharedWatch, lock};
use crate::net::NetNs;
use crate::net::packet::{self, FrameInjector, VNET_HEADER, VnetHeader};
use crate::qmp::Qmp;
use crate::qmp::command::{Cont, MigrateCancel, QueryMigrate, QueryStatus, RunState};

use super::arm::Armed;
use super::hooks::Hooks;
use super::peer::Peer;
use super::recover::inject;
use super::storage::{Mirror, Residue};

/// Rounds of returns while packets still go to the destination, at most.
const ROUNDS: usize = 50;
/// So few frames come in between two rounds.
const FEW: usize = 1;
/// Between two looks at what is still on its way.
const POLL: Duration = Duration::from_millis(1);

/// Where the account of an abort is left for the report.
pub(crate) type ReturnedCell = Arc<OnceLock<Returned>>;

/// Ends a migration that did not commit: cancelled in QEMU, held packets taken back from the destination,
/// redirect off, and the VM running again here.
pub(crate) struct GiveBack {
    qmp: Qmp,
    peer: Peer,
    drives: Option<Residue>,
    hooks: Option<Hooks>,
    watch: SharedWatch,
    stopped: Arc<AtomicBool>,
    tap_netns: NetNs,
    tap: u32,
    vm_ips: Vec<IpAddr>,
    told: ReturnedCell,
    diary: Diary,
}

impl GiveBack {
    pub(crate) fn new(armed: &Armed, vm_ips: &[IpAddr], told: ReturnedCell, diary: Diary) -> Self {
        let node = &armed.prepared.node;
        Self {
            qmp: node.qmp.clone(),
            peer: armed.prepared.peer.clone(),
            drives: armed.mirror.as_ref().map(Mirror::residue),
            hooks: armed.hooks.clone(),
            watch: armed.watch.clone(),
            stopped: armed.stopped.clone(),
            tap_netns: node.tap_netns.clone(),
            tap: node.tap.index,
            vm_ips: vm_ips.to_vec(),
            told,
            diary,
        }
    }

    pub(crate) async fn run(self) -> Result<(), String> {
        let mut problems = Vec::new();
        // QEMU answers nothing while it waits for a destination's drive that is gone.
        if let Some(drives) = self.drives.clone() {
            problems.extend(drives.remove().await.err());
        }
        if let Err(error) = self.qmp.execute(MigrateCancel).await {
            problems.push(chain(&error));
        }
        problems.extend(self.take_all_back().await);
        match self.resume().await {
            Ok(()) => self.diary.mention(&Record::Resumed),
            Err(error) => problems.push(error),
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        }
    }

    /// The VM's packets wait at the destination until they are in the tap: round after round, as long as there are
    /// more than come in between two. Only then is the redirect turned off, so that what comes directly comes
    /// after them; but for the few that were on their way, which are waited for.
    async fn take_all_back(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(hooks) = &self.hooks else {
            return problems;
        };
        let redirected = || hooks.counters().ok().map(|c| c.s3.packets);
        let mut returned = Returned::default();
        // One for all rounds: to close a packet socket takes the kernel some 10 ms.
        let injector = FrameInjector::open(&self.tap_netns, self.tap);
        let mut injector = match injector {
            Ok(injector) => injector,
            Err(error) => {
                problems.push(format!("open the VM's tap: {}", chain(&error)));
                problems.extend(hooks.unflip().err().map(|error| chain(&error)));
                return problems;
            }
        };
        if redirected().is_some_and(|packets| packets > 0) {
            for _ in 0..ROUNDS {
                match self.take_back(&mut injector, &mut returned).await {
                    Ok(frames) if frames > FEW => {}
                    Ok(_) => break,
                    Err(error) => {
                        problems.push(format!("take held packets back: {error}"));
                        break;
                    }
                }
            }
        }
        if let Err(error) = hooks.unflip() {
            problems.push(chain(&error));
        }
        let end = Instant::now() + deadline::RETURN;
        // Again: the flip may have come between a look and the abort.
        while redirected().is_some_and(|packets| packets > 0) {
            // Read before the destination's counter and its ring, so that what it counts has been taken back.
            let all = returned.arrived.is_none() || returned.arrived >= redirected();
            if let Err(error) = self.take_back(&mut injector, &mut returned).await {
                problems.push(format!("take the last packets back: {error}"));
                break;
            }
            if all || Instant::now() >= end {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        if let Some(packets) = redirected().filter(|packets| *packets > 0) {
            returned.redirected = packets;
            self.told.get_or_init(|| returned);
        }
        problems
    }

    /// Takes back what the destination has. Returns how many frames that were.
    async fn take_back(
        &self,
        injector: &mut FrameInjector,
        returned: &mut Returned,
    ) -> Result<usize, String> {
        let mut taken = 0;
        loop {
            let request = Request::Abort {
                reason: "the source gave up".into(),
            };
            let reply = self
                .peer
                .ask("take packets back", request, deadline::REQUEST)
                .await
                .map_err(|e| chain(&e))?;
            let Reply::Aborted {
                frames,
                more,
                arrived,
            } = reply
            else {
                return Err("the destination answered Abort with something else".into());
            };
            lock(&self.watch).add_injected(frames.len() as u64);
            inject(injector, &frames).map_err(|e| chain(&e))?;
            taken += frames.len();
            let ours = |frame: &&WireFrame| {
                ip_destination(frame).is_some_and(|ip| self.vm_ips.contains(&ip))
            };
            returned.returned += frames.iter().filter(ours).map(wire_packets).sum::<u64>();
            returned.arrived = arrived.or(returned.arrived);
            if !more {
                return Ok(taken);
            }
        }
    }

    /// `migrate_cancel` lets a VM run again that QEMU itself stopped, but not one that we stopped.
    async fn resume(&self) -> Result<(), String> {
        let end = Instant::now() + deadline::QMP_RUN_STATE;
        loop {
            let migration = self
                .qmp
                .execute(QueryMigrate)
                .await
                .map_err(|e| chain(&e))?;
            let over = migration
                .status
                .as_ref()
                .is_none_or(crate::qmp::command::MigrationStatus::is_final);
            if over || Instant::now() >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = self.qmp.execute(QueryStatus).await.map_err(|e| chain(&e))?;
        // A VM that somebody else paused stays paused.
        let theirs = status.status == RunState::Paused && !self.stopped.load(Ordering::Relaxed);
        if status.running || theirs {
            return Ok(());
        }
        self.qmp.execute(Cont).await.map_err(|e| chain(&e))?;
        let status = self.qmp.execute(QueryStatus).await.map_err(|e| chain(&e))?;
        if status.running {
            Ok(())
        } else {
            Err(format!("the VM is still {}", status.status))
        }
    }
}

/// Whom a frame with its virtio_net_hdr in front is for.
fn ip_destination(WireFrame(bytes): &WireFrame) -> Option<IpAddr> {
    packet::ip_destination(bytes.get(VNET_HEADER..)?)
}

/// How many packets on the wire a frame with its virtio_net_hdr in front is.
fn wire_packets(WireFrame(bytes): &WireFrame) -> u64 {
    bytes
        .split_first_chunk::<VNET_HEADER>()
        .map_or(0, |(header, frame)| {
            VnetHeader(*header).wire_segments(frame.len())
        })
}
