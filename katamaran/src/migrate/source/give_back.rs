//! A migration that does not commit: what the destination holds of the VM's packets is taken back, and the VM goes on.

use std::iter::from_fn;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::OnceCell;

use crate::deadline;
use crate::ebpf::settle;
use crate::journal::Record;
use crate::migrate::diary::Diary;
use crate::migrate::error::chain;
use crate::migrate::ledger::Returned;
use crate::migrate::message::{Reply, Request, WireFrame};
use crate::migrate::neighbours::Neighbours;
use crate::migrate::put_back::{FEW, PutBack, ROUNDS};
use crate::migrate::tap_watch::{SharedWatch, lock};
use crate::net::NetNs;
use crate::net::packet::{self, VnetHeader};
use crate::qmp::Qmp;
use crate::qmp::command::{Cont, MigrateCancel, QueryMigrate, QueryStatus, RunState};
use crate::relay::{Governor, Pace};

use super::arm::Armed;
use super::hooks::Hooks;
use super::kept::{Kept, Tapped};
use super::known::{Known, fingerprint, packets};
use super::lane::Lane;
use super::peer::Peer;
use super::storage::{Mirror, Residue};

/// Between two looks at what is still on its way.
const POLL: Duration = Duration::from_millis(1);

/// Where the account of an abort is left for the report.
pub(crate) type ReturnedCell = Arc<OnceLock<Returned>>;

/// Ends a migration that did not commit: cancelled in QEMU, held packets taken back from the destination,
/// redirect off, and the VM running again here. What a destination that is gone had is taken from the copies
/// that this node has retained.
pub(crate) struct GiveBack {
    qmp: Qmp,
    peer: Peer,
    drives: Option<Residue>,
    stopped: Arc<AtomicBool>,
    lanes: Vec<WayBack>,
    told: ReturnedCell,
    diary: Diary,
    /// QEMU may be at the end of its stream, and hears nothing until that has been taken.
    governor: Governor,
    /// What went wrong when QEMU was asked to let go of the migration.
    let_go: OnceCell<Vec<String>>,
}

/// The way back to one of the VM's network cards.
struct WayBack {
    number: usize,
    hooks: Option<Hooks>,
    watch: SharedWatch,
    tap_netns: NetNs,
    tap: u32,
    addresses: Vec<IpAddr>,
    neighbours: Neighbours,
    kept: Kept,
}

impl WayBack {
    fn of(lane: &Lane) -> Self {
        let way = &lane.way;
        Self {
            number: lane.number,
            hooks: lane.hooks.clone(),
            watch: lane.watch.clone(),
            tap_netns: way.nic.tap_netns.clone(),
            tap: way.nic.tap.index,
            addresses: way.addresses.clone(),
            neighbours: Neighbours::of(&way.nic, &way.addresses, way.mac.0),
            kept: lane.kept.clone(),
        }
    }

    /// What was recovered is older than what has come into the tap since: that is read as well, before the VM can, and what comes
    /// from now on is kept from the tap.
    fn empty_tap(&self) -> Result<(), String> {
        let Some(hooks) = self.hooks.as_ref().filter(|_| self.kept.has_begun()) else {
            return Ok(());
        };
        if !hooks.redirects() {
            hooks.flip().map_err(|e| chain(&e))?;
            settle();
        }
        self.kept.read().map(drop).map_err(|e| chain(&e))
    }
}

impl GiveBack {
    pub(crate) fn new(armed: &Armed, told: ReturnedCell, diary: Diary, governor: Governor) -> Self {
        Self {
            qmp: armed.prepared.node.qmp.clone(),
            peer: armed.prepared.peer.clone(),
            drives: armed.mirror.as_ref().map(Mirror::residue),
            stopped: armed.stopped.clone(),
            lanes: armed.lanes.iter().map(WayBack::of).collect(),
            told,
            diary,
            governor,
            let_go: OnceCell::new(),
        }
    }

    pub(crate) async fn run(self) -> Result<(), String> {
        let mut problems = Vec::new();
        for lane in &self.lanes {
            problems.extend(lane.empty_tap().err());
            // What comes directly from now on must not wait for the answer of a VM that may stand still for long.
            lane.neighbours.introduce().await;
        }
        // Beside each other: packets get back into the tap of a QEMU that does not answer, too.
        let taking = tokio::time::timeout(deadline::PUT_BACK, self.take_all_back());
        let taken = async {
            match taking.await {
                Ok(problems) => problems,
                Err(_) => {
                    let mut problems =
                        vec!["the VM's packets could not all be put back in time".to_owned()];
                    let hooks = self.lanes.iter().filter_map(|lane| lane.hooks.as_ref());
                    problems.extend(hooks.filter_map(|h| h.unflip().err()).map(|e| chain(&e)));
                    problems
                }
            }
        };
        let (let_go, taken) = tokio::join!(self.let_go(), taken);
        problems.extend_from_slice(let_go);
        problems.extend(taken);
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

    /// QEMU gives the migration up, and its drives; once.
    async fn let_go(&self) -> &[String] {
        let ask = async || {
            self.governor.set(Pace::Full);
            let mut problems = Vec::new();
            // QEMU answers nothing while it waits for a destination's drive that is gone.
            if let Some(drives) = self.drives.clone() {
                problems.extend(drives.remove().await.err());
            }
            if let Err(error) = self.qmp.execute(MigrateCancel).await {
                problems.push(chain(&error));
            }
            problems
        };
        self.let_go.get_or_init(ask).await
    }

    /// For all cards beside each other.
    async fn take_all_back(&self) -> Vec<String> {
        let taken = join_all(self.lanes.iter().map(|lane| self.take_back_to(lane))).await;
        let mut problems = Vec::new();
        let mut sum: Option<Returned> = None;
        for (returned, more) in taken {
            problems.extend(more);
            sum = match (sum, returned) {
                (Some(sum), Some(returned)) => Some(sum.plus(returned)),
                (one, other) => one.or(other),
            };
        }
        if let Some(returned) = sum {
            self.told.get_or_init(|| returned);
        }
        problems
    }

    /// The VM's packets wait at the destination until they are in the tap: round after round, as long as there are
    /// more than come in between two. Only then is the redirect turned off, so that what comes directly comes
    /// after them; but for the few that were on their way, which are waited for.
    ///
    /// A destination that does not answer any more keeps what it has, and copies of all that was redirected are here.
    async fn take_back_to(&self, lane: &WayBack) -> (Option<Returned>, Vec<String>) {
        let mut problems = Vec::new();
        let Some(hooks) = &lane.hooks else {
            return (None, problems);
        };
        let into = match PutBack::open(&lane.tap_netns, lane.tap, async || self.resume().await) {
            Ok(into) => into,
            Err(error) => {
                problems.push(error);
                problems.extend(hooks.unflip().err().map(|error| chain(&error)));
                return (None, problems);
            }
        };
        let mut taking = Taking {
            hooks,
            into,
            lane,
            until: Instant::now() + deadline::TAKE_BACK,
            from_copies: None,
            returned: Returned::default(),
            had: Known::default(),
            given: Known::default(),
            pending: Vec::new(),
        };
        if let Some(kept) = lane.kept.take() {
            problems.extend(taking.put_kept(&kept).await.err());
        }
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
        // The last few are on their way there, or there, and what comes now must not overtake them.
        problems.extend(taking.take_tail().await.err());
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
        returned.redirected = packets;
        if let Some(why) = taking.from_copies
            && returned.missing().is_some()
        {
            problems.push(format!("take held packets back: {why}"));
        }
        ((packets > 0).then_some(returned), problems)
    }

    /// From the destination as long as it answers, and from here then. Returns how many there were.
    async fn take_round<R: AsyncFnOnce() -> Result<(), String>>(
        &self,
        taking: &mut Taking<'_, R>,
    ) -> Result<u64, String> {
        if taking.from_copies.is_none() {
            match self.take_back(taking).await? {
                Ok(frames) => {
                    taking.look_through_copies()?;
                    return Ok(frames);
                }
                Err(error) => {
                    tracing::info!(
                        error,
                        "the destination gives nothing back: taking the copies"
                    );
                    taking.from_copies = Some(error);
                }
            }
        }
        taking.take_copies().await
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
                nic: taking.lane.number,
            };
            let asked = self
                .peer
                .ask("take packets back", request, deadline::REQUEST);
            let Ok(reply) = tokio::time::timeout_at(taking.until.into(), asked).await else {
                return Ok(Err("it takes too long".to_owned()));
            };
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
            for frame in &frames {
                let ours =
                    ip_destination(frame).is_some_and(|ip| taking.lane.addresses.contains(&ip));
                let taken = taking.take_frame(frame).await?;
                if ours {
                    taking.returned.returned += taken;
                }
            }
            taken += frames.len() as u64;
            taking.returned.arrived = arrived.or(taking.returned.arrived);
            if !more {
                return Ok(Ok(taken));
            }
        }
    }

    /// `migrate_cancel` lets a VM run again that QEMU itself stopped, but not one that we stopped.
    async fn resume(&self) -> Result<(), String> {
        self.let_go().await;
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
    lane: &'a WayBack,
    /// So long the destination may take.
    until: Instant,
    /// What the VM has, or gets, though the destination was given it as well.
    had: Known,
    /// What the destination has given back, and whose copy has not been seen.
    given: Known,
    /// Copies of what it has not given back: fingerprint and frame, in their order.
    pending: Vec<(u64, Vec<u8>)>,
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

    async fn put(&mut self, header: VnetHeader, frame: &[u8]) -> Result<(), String> {
        self.into.frame(header, frame).await?;
        lock(&self.lane.watch).add_injected(1);
        Ok(())
    }

    /// What was recovered is older than all that was redirected.
    async fn put_kept(&mut self, kept: &Tapped) -> Result<(), String> {
        for (header, frame) in kept.swallowed.iter().filter_map(WireFrame::split) {
            self.had.add_all(header, frame);
        }
        for (header, frame) in kept.frames.iter().filter_map(WireFrame::split) {
            self.had.add_all(header, frame);
            self.put(header, frame).await?;
        }
        Ok(())
    }

    /// Returns how many of its packets the VM did not have yet.
    async fn take_frame(&mut self, frame: &WireFrame) -> Result<u64, String> {
        let Some((header, frame)) = frame.split() else {
            return Ok(0);
        };
        let packets = packets(header, frame);
        let all = packets.len();
        let fresh = self.had.without(packets);
        for packet in &fresh {
            self.given.add(fingerprint(packet));
        }
        if fresh.len() == all {
            self.put(header, frame).await?;
            return Ok(header.wire_segments(frame.len()));
        }
        for packet in &fresh {
            self.put(VnetHeader::default(), packet).await?;
        }
        Ok(fresh.len() as u64)
    }

    /// Looks which copies are of packets that the destination has not given back.
    fn look_through_copies(&mut self) -> Result<(), String> {
        let hooks = self.hooks;
        for copy in from_fn(|| hooks.next_retained()) {
            let known = |packet: Vec<u8>| (fingerprint(&packet), packet);
            self.pending
                .extend(copy.into_frames()?.into_iter().map(known));
        }
        self.pending.retain(|(known, _)| !self.given.take(*known));
        Ok(())
    }

    /// The destination gives nothing back any more: what it has not, is here. Returns how many packets that are.
    async fn take_copies(&mut self) -> Result<u64, String> {
        self.look_through_copies()?;
        let all = self.pending.len();
        self.put_pending(all).await
    }

    /// The packets that have not come back yet, for which there is no time to ask the destination. It has them, or gets them.
    async fn take_tail(&mut self) -> Result<(), String> {
        self.look_through_copies()?;
        let missing = self.redirected().saturating_sub(self.returned.returned);
        let last = usize::try_from(missing).unwrap_or(usize::MAX);
        self.put_pending(last).await.map(drop)
    }

    /// The last so many.
    async fn put_pending(&mut self, last: usize) -> Result<u64, String> {
        let older = self.pending.len().saturating_sub(last);
        let pending = self.pending.split_off(older);
        let mut put = 0;
        for (known, packet) in &pending {
            self.put(VnetHeader::default(), packet).await?;
            self.had.add(*known);
            put += 1;
        }
        self.returned.returned += put;
        self.returned.from_copies += put;
        Ok(put)
    }
}

/// Whom a frame with its virtio_net_hdr in front is for.
fn ip_destination(frame: &WireFrame) -> Option<IpAddr> {
    packet::ip_destination(frame.split()?.1)
}
