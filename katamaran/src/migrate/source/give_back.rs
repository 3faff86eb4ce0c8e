//! A migration that does not commit: what the destination holds of the VM's packets is taken back, and the VM goes on.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::iter::from_fn;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::deadline;
use crate::frame::complete_checksum;
use crate::journal::Record;
use crate::migrate::diary::Diary;
use crate::migrate::error::chain;
use crate::migrate::ledger::Returned;
use crate::migrate::message::{Reply, Request, WireFrame};
use crate::migrate::put_back::{FEW, PutBack, ROUNDS};
use crate::migrate::tap_watch::{SharedWatch, lock};
use crate::net::NetNs;
use crate::net::packet::{self, VNET_HEADER, VnetHeader};
use crate::qmp::Qmp;
use crate::qmp::command::{Cont, MigrateCancel, QueryMigrate, QueryStatus, RunState};

use super::arm::Armed;
use super::hooks::Hooks;
use super::peer::Peer;
use super::storage::{Mirror, Residue};

/// Between two looks at what is still on its way.
const POLL: Duration = Duration::from_millis(1);
/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Where the account of an abort is left for the report.
pub(crate) type ReturnedCell = Arc<OnceLock<Returned>>;

/// Ends a migration that did not commit: cancelled in QEMU, held packets taken back from the destination,
/// redirect off, and the VM running again here. What a destination that is gone had is taken from the copies
/// that this node has retained.
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
    ///
    /// A destination that does not answer any more keeps what it has, and copies of all that was redirected are here.
    async fn take_all_back(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(hooks) = &self.hooks else {
            return problems;
        };
        let into = match PutBack::open(&self.tap_netns, self.tap, async || self.resume().await) {
            Ok(into) => into,
            Err(error) => {
                problems.push(error);
                problems.extend(hooks.unflip().err().map(|error| chain(&error)));
                return problems;
            }
        };
        let mut taking = Taking {
            hooks,
            into,
            from_copies: None,
            returned: Returned::default(),
            known: HashSet::new(),
        };
        if taking.redirected() > 0 {
            for _ in 0..ROUNDS {
                match self.take_round(&mut taking).await {
                    Ok(frames) if frames > FEW => {}
                    Ok(_) => break,
                    Err(error) => {
                        problems.push(error);
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
        while taking.redirected() > 0 {
            // Read before the destination's counter and its ring, so that what it counts has been taken back.
            let all = taking.is_all();
            if let Err(error) = self.take_round(&mut taking).await {
                problems.push(error);
                break;
            }
            if all || Instant::now() >= end {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        let packets = taking.redirected();
        let mut returned = taking.returned;
        if packets > 0 {
            returned.redirected = packets;
            self.told.get_or_init(|| returned);
        }
        if let Some(why) = taking.from_copies
            && returned.missing().is_some()
        {
            problems.push(format!("take held packets back: {why}"));
        }
        problems
    }

    /// From the destination as long as it answers, and from here then. Returns how many there were.
    async fn take_round<R: AsyncFnOnce() -> Result<(), String>>(
        &self,
        taking: &mut Taking<'_, R>,
    ) -> Result<u64, String> {
        if taking.from_copies.is_none() {
            match self.take_back(taking).await? {
                Ok(frames) => return Ok(frames),
                Err(error) => {
                    tracing::info!(
                        error,
                        "the destination gives nothing back: taking the copies"
                    );
                    taking.from_copies = Some(error);
                }
            }
        }
        let copies = taking.take_copies().await?;
        lock(&self.watch).add_injected(copies);
        Ok(copies)
    }

    /// Takes back what the destination has. Returns how many frames that were, or why it does not say.
    async fn take_back<R: AsyncFnOnce() -> Result<(), String>>(
        &self,
        taking: &mut Taking<'_, R>,
    ) -> Result<Result<u64, String>, String> {
        let mut taken = 0;
        loop {
            let request = Request::Abort {
                reason: "the source gave up".into(),
            };
            let reply = self
                .peer
                .ask("take packets back", request, deadline::REQUEST)
                .await;
            let (frames, more, arrived) = match reply {
                Ok(Reply::Aborted {
                    frames,
                    more,
                    arrived,
                }) => (frames, more, arrived),
                Ok(_) => {
                    return Ok(Err(
                        "the destination answered Abort with something else".into()
                    ));
                }
                Err(error) => return Ok(Err(chain(&error))),
            };
            lock(&self.watch).add_injected(frames.len() as u64);
            for WireFrame(bytes) in &frames {
                taking.take_frame(bytes).await?;
            }
            taken += frames.len() as u64;
            let ours = |frame: &&WireFrame| {
                ip_destination(frame).is_some_and(|ip| self.vm_ips.contains(&ip))
            };
            let returned = &mut taking.returned;
            returned.returned += frames.iter().filter(ours).map(wire_packets).sum::<u64>();
            returned.arrived = arrived.or(returned.arrived);
            if !more {
                return Ok(Ok(taken));
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

/// How far the way back is.
struct Taking<'a, R> {
    hooks: &'a Hooks,
    into: PutBack<R>,
    /// Why the destination gives nothing back; its packets are taken from their copies then.
    from_copies: Option<String>,
    returned: Returned,
    /// What the destination has given back before that.
    known: HashSet<u64>,
}

impl<R: AsyncFnOnce() -> Result<(), String>> Taking<'_, R> {
    fn redirected(&self) -> u64 {
        self.hooks.counters().map_or(0, |c| c.s3.packets)
    }

    /// All that was redirected has come somewhere from where it can be taken.
    fn is_all(&self) -> bool {
        if self.from_copies.is_some() {
            return self.returned.returned >= self.redirected();
        }
        let arrived = self.returned.arrived;
        arrived.is_none_or(|arrived| arrived >= self.redirected())
    }

    async fn take_frame(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((header, frame)) = bytes.split_first_chunk::<VNET_HEADER>() else {
            return Ok(());
        };
        self.known.insert(fingerprint(frame));
        self.into.frame(VnetHeader(*header), frame).await
    }

    async fn take_copies(&mut self) -> Result<u64, String> {
        let (hooks, known) = (self.hooks, &self.known);
        let copies = from_fn(|| hooks.next_retained());
        let missing = copies.filter(|packet| !known.contains(&fingerprint(&packet.frame)));
        let taken = self.into.all(missing).await?;
        self.returned.returned += taken;
        self.returned.from_copies += taken;
        Ok(taken)
    }
}

/// What is the same of a packet on both nodes: all behind the Ethernet header, with the checksum that it has on a wire.
fn fingerprint(frame: &[u8]) -> u64 {
    let mut frame = frame.to_vec();
    complete_checksum(&mut frame);
    let mut hasher = DefaultHasher::new();
    frame.get(ETHERNET..).hash(&mut hasher);
    hasher.finish()
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
