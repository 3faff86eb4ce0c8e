//! The cutover: hold, flip, drain, stop; then COMMIT.
//!
//! Order is everything here. The redirect stands *before* the VM stops, and the VM stops only once
//! QEMU has read every packet that was passed to it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::deadline;
use crate::ebpf::FlipTime;
use crate::journal::Record;
use crate::migrate::error::{Doing as _, MigrateError, chain};
use crate::migrate::message::{Reply, Request};
use crate::migrate::node::refused;
use crate::migrate::shared::must_have_let_go;
use crate::migrate::tap_watch::lock;
use crate::net::tapfd::TapQueues;
use crate::qmp::command::{MigrationStatus, Stop};
use crate::qmp::{Event, EventName, Qmp};
use crate::relay::{Governor, Pace, RelayStatus};
use crate::wall_clock::now_us;

use super::Run;
use super::arm::Armed;
use super::commit::{Fate, fate};
use super::finish::{Committed, Running};
use super::lane::{Lane, StoppedTap};
use super::peer::{bad_news, cause_of};
use super::precopy::{Ready, must_be_switching_over, take_stop};
use super::recover;
use super::storage::{self, HandedOver, Mirror};

/// Waiting for a busy guest to read its tap costs delay, never a packet. One that has read nothing for so long reads
/// no more.
const DRAIN_STALL: Duration = Duration::from_secs(2);
/// The longest that a guest is waited for that reads on. Nothing is added to its tap meanwhile.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// A drain that takes longer than this means that the guest was behind.
const BEHIND: Duration = Duration::from_millis(2);
/// The longest that such a guest is given after its tap was empty.
const GRACE: Duration = Duration::from_millis(50);
/// Packets that may have been between hook and tap when either was first read.
const PAST_HOOK_SLACK: u64 = 16;
/// Between two readings of the drained tap that must agree.
const DRAIN_CONFIRM: Duration = Duration::from_micros(200);

/// The VM is stopped on the source and complete on the destination; nothing runs.
pub(crate) struct Paused {
    pub(crate) armed: Armed,
    pub(crate) moments: Moments,
    /// The drives that were mirrored are the destination's.
    pub(crate) drives: Option<HandedOver>,
}

/// When things happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    pub(crate) flip: Instant,
    pub(crate) flip_us: i64,
    /// The map write, on the clock that the programs use; the first, where there are several.
    pub(crate) flip_time: Option<FlipTime>,
    /// QEMU's STOP event, microseconds since the epoch.
    pub(crate) stopped_us: Option<u64>,
}

pub(crate) async fn pause(mut ready: Ready, run: &mut Run) -> Result<Paused, MigrateError> {
    run.check_interrupt()?;
    must_come_through_hook(&ready.armed)?;
    if ready.stopped_first.is_none() {
        run.connections.hold().await;
    }
    if let Some(mirror) = &ready.armed.mirror {
        let confirmed = mirror.confirm_in_step().await;
        if let Err(error) = confirmed {
            return Err(cause_of(&mut ready.armed.prepared.notices, error).await);
        }
    }
    match ready
        .armed
        .prepared
        .peer
        .ask(
            "let the destination hold packets",
            Request::Block,
            deadline::REQUEST,
        )
        .await?
    {
        Reply::Blocked => {}
        _ => return Err(MigrateError::OutOfStep { what: "Block" }),
    }
    // While we asked, QEMU may have stopped the VM after all (its stream is held, so it can't have
    // got far, but it can have decided).
    if ready.stopped_first.is_none() {
        ready.stopped_first = take_stop(&mut ready.armed);
    }
    let moments = match ready.stopped_first.take() {
        Some(event) => {
            must_be_switching_over(&ready.armed, &ready.governor).await?;
            run.report.cutover.qemu_stopped_first = true;
            tracing::warn!(
                "QEMU stopped the VM before the redirect was in place: recovering its packets"
            );
            recover::after_early_stop(&mut ready.armed, run, &event).await?
        }
        None => match flip_drain_stop(&mut ready, run).await {
            Ok(moments) => moments,
            Err(error) => return Err(cause_of(&mut ready.armed.prepared.notices, error).await),
        },
    };
    run.start_pause();
    run.connections.settle();
    run.report.cutover.predicted_pause_ms = Some(ready.predicted.as_secs_f64() * 1000.0);
    ready.governor.set(Pace::Full);
    let drives = match ready.armed.mirror.take() {
        Some(mirror) => {
            let handed_over =
                storage::hand_over(mirror, &mut ready.armed, run, &ready.relay, moments.flip);
            match handed_over.await {
                Ok(handed_over) => Some(handed_over),
                Err(error) => {
                    return Err(cause_of(&mut ready.armed.prepared.notices, error).await);
                }
            }
        }
        None => None,
    };
    if let Err(error) = wait_until_loaded(&mut ready.armed, run, &ready.relay).await {
        return Err(cause_of(&mut ready.armed.prepared.notices, error).await);
    }
    tracing::debug!("loaded");
    run.report.cutover.loaded_ms = Some(ms_since(moments.flip));
    run.connections.settled().await;
    must_have_let_go(&run.shared).await?;
    Ok(Paused {
        armed: ready.armed,
        moments,
        drives,
    })
}

/// What goes to a tap past the hook could not be turned to the destination, and would be lost.
fn must_come_through_hook(armed: &Armed) -> Result<(), MigrateError> {
    for lane in &armed.lanes {
        let Some(hooks) = &lane.hooks else { continue };
        let past = hooks.past_hook().saturating_sub(lane.past_hook);
        if past <= PAST_HOOK_SLACK {
            continue;
        }
        let hook = &lane.way.hook;
        return Err(refused(format!(
            "{past} packets for the VM reached its tap past the hook on {hook}: redirected there, they would be lost. {}",
            match lane.way.nic.pod_end() {
                Some(end) => format!(
                    "Leave --redirect-dev out: {} in the pod is hooked then, which all of them come through",
                    end.name
                ),
                None => "Name a device with --redirect-dev that all of them go through".to_owned(),
            }
        )));
    }
    Ok(())
}

async fn flip_drain_stop(ready: &mut Ready, run: &mut Run) -> Result<Moments, MigrateError> {
    let (armed, governor) = (&mut ready.armed, &ready.governor);
    let queues: Vec<_> = armed
        .lanes
        .iter()
        .map(|lane| tap_queues(armed, lane))
        .collect();
    let flip_us = now_us();
    let flip = Instant::now();
    let flip_time = flip_all(armed)?;
    tracing::debug!("flipped");
    run.report.cutover.flip_us = Some(flip_us);
    run.report.cutover.flip_write_us = flip_time.map(write_us);
    let end = match armed.redirects() {
        true => drain(armed, &queues).await,
        false => Drain::Drained,
    };
    tracing::debug!(?end, "drained");
    run.diary.note(&Record::Stopping)?;
    armed.stopped.store(true, Ordering::Relaxed);
    run.report.cutover.drained_ms = Some(ms_since(flip));
    let drained = matches!(end, Drain::Drained);
    let event = match end {
        Drain::Drained | Drain::Stalled => stop(armed, governor).await?,
        Drain::Stopped(event) => {
            must_be_switching_over(armed, governor).await?;
            run.report.cutover.qemu_stopped_first = true;
            event
        }
    };
    tracing::debug!("stopped");
    run.report.cutover.stopped_ms = Some(ms_since(flip));
    if !drained {
        tracing::warn!("the guest did not read its tap in time: recovering its packets");
        recover::after_stalled_drain(armed, run, &queues, &event).await?;
    }
    for (lane, queues) in armed.lanes.iter_mut().zip(&queues) {
        lane.stopped = Some(StoppedTap {
            drained: lane.balance(),
            unread: !drained,
            ring_unseen: lane.hooks.is_some() && queues.is_none(),
        });
    }
    Ok(Moments {
        flip,
        flip_us,
        flip_time,
        stopped_us: event.timestamp_us,
    })
}

/// Each is a single point in the order of its packets. Returns when the first was.
pub(crate) fn flip_all(armed: &Armed) -> Result<Option<FlipTime>, MigrateError> {
    let mut first = None;
    for lane in &armed.lanes {
        let time = lane.flip()?;
        first = first.or(time);
    }
    Ok(first)
}

/// Stops the VM. Returns the event of that.
///
/// QEMU may do so by itself at the same moment: it then only answers when its stream has been taken ([`must_be_switching_over`]).
async fn stop(armed: &mut Armed, governor: &Governor) -> Result<Event, MigrateError> {
    let qmp = armed.prepared.node.qmp.clone();
    let mirror = armed.mirror.as_ref();
    let events = &mut armed.prepared.node.events;
    let mut stopped = None;
    let mut asked = pin!(ask_to_stop(&qmp, mirror));
    let is_stop = |event: &Event| event.name == EventName::Stop;
    loop {
        tokio::select! {
            biased;
            asked = &mut asked => break asked?,
            event = events.recv(), if stopped.is_none() => {
                stopped = Some(event.doing("see the VM stop")?).filter(is_stop);
                if stopped.is_some() {
                    governor.set(Pace::Full);
                }
            }
        }
    }
    match stopped {
        Some(event) => Ok(event),
        None => events
            .wait_for(is_stop, deadline::REQUEST)
            .await
            .doing("see the VM stop"),
    }
}

/// A stop waits for the guest's writes under way, and these for the destination's drives.
async fn ask_to_stop(qmp: &Qmp, mirror: Option<&Mirror>) -> Result<(), MigrateError> {
    let Some(mirror) = mirror else {
        return qmp.execute(Stop).await.doing("stop the VM").map(|_| ());
    };
    let stopped = qmp.execute_within(Stop, deadline::STOP_MIRRORED).await;
    match stopped {
        Err(error) if error.is_timeout() => Err(mirror.keeps_vm_from_stopping()),
        other => other.doing("stop the VM").map(|_| ()),
    }
}

/// QEMU's own descriptors of a tap, to look into its ring with.
fn tap_queues(armed: &Armed, lane: &Lane) -> Option<Arc<TapQueues>> {
    lane.hooks.as_ref()?;
    lane.queues(armed.prepared.node.qemu_pid)
        .inspect_err(|error| tracing::warn!(error = chain(error), "can't look into the tap's ring"))
        .ok()
}

/// Whether all taps are empty, and how many packets have left them.
fn looked_at(armed: &Armed, queues: &[Option<Arc<TapQueues>>]) -> (bool, Option<u64>) {
    let (mut drained, mut left) = (true, Some(0));
    for (lane, queues) in armed.lanes.iter().zip(queues) {
        let empty = queues
            .as_ref()
            .is_none_or(|queues| queues.empty().is_ok_and(|empty| empty.is_some()));
        lane.observe();
        let watch = lock(&lane.watch);
        drained &= empty && watch.is_drained();
        left = left.zip(watch.left()).map(|(sum, left)| sum + left);
    }
    (drained, left)
}

/// How the wait for the guest to read its tap ended.
#[derive(Debug)]
enum Drain {
    /// QEMU has read all.
    Drained,
    /// It has not, for too long.
    Stalled,
    /// QEMU stopped the VM by itself: nothing is read any more, and it may have taken a packet that the VM has not got.
    Stopped(Event),
}

/// Waits until QEMU has read every packet that was passed to the taps before the flip.
///
/// That the ring is empty is seen by looking into it. To the counters alone a ring that was never empty since they were first
/// read seems to be empty when it is as full as it was at its emptiest.
async fn drain(armed: &mut Armed, queues: &[Option<Arc<TapQueues>>]) -> Drain {
    let began = Instant::now();
    let mut drained_since: Option<Instant> = None;
    let mut progress = (None, began);
    loop {
        if let Some(event) = take_stop(armed) {
            return Drain::Stopped(event);
        }
        let (drained, left) = looked_at(armed, queues);
        if left != progress.0 {
            progress = (left, Instant::now());
        }
        let since = drained.then(|| *drained_since.get_or_insert_with(Instant::now));
        if !drained {
            drained_since = None;
        }
        let confirmed = since.is_some_and(|since| {
            let took = since.duration_since(began);
            // A guest that was behind may have filled its receive ring: QEMU then holds one packet that
            // it has read already, and a stop would discard it. It is given as long again to take it.
            let confirm = if took > BEHIND {
                took.min(GRACE)
            } else {
                DRAIN_CONFIRM
            };
            since.elapsed() >= confirm
        });
        let given_up = progress.1.elapsed() >= DRAIN_STALL || began.elapsed() >= DRAIN_LIMIT;
        if confirmed || (given_up && drained) {
            return Drain::Drained;
        }
        if given_up {
            return Drain::Stalled;
        }
        if began.elapsed() > BEHIND {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            // Finer than the runtime's timer: yield, don't sleep.
            tokio::task::yield_now().await;
        }
    }
}

/// Both QEMUs have to say so: the source that everything is sent, the destination that everything
/// is loaded.
async fn wait_until_loaded(
    armed: &mut Armed,
    run: &Run,
    relay: &RelayStatus,
) -> Result<(), MigrateError> {
    let end = tokio::time::Instant::now() + deadline::SWITCHOVER;
    let (mut sent, mut loaded) = (false, false);
    while !(sent && loaded) {
        tokio::select! {
            biased;
            event = armed.prepared.node.events.recv(), if !sent => {
                sent = has_completed(&event.doing("watch the migration end")?)?;
            }
            // To the end: QEMU waits for a last word of the other one's, which a session that breaks now would have carried.
            notice = armed.prepared.notices.next() => {
                match bad_news(notice.doing("hear from the destination")?) {
                    Some(error) => return Err(error),
                    None => loaded = true,
                }
            }
            error = relay.failed(), if !loaded => {
                return Err(error).doing("carry the RAM stream");
            }
            error = run.cut_short() => return Err(error),
            () = tokio::time::sleep_until(end) => {
                return Err(MigrateError::Deadline { what: "the VM's arrival on the destination", within: deadline::SWITCHOVER });
            }
        }
    }
    Ok(())
}

fn has_completed(event: &Event) -> Result<bool, MigrateError> {
    match event.migration_status() {
        Some(MigrationStatus::Completed) => Ok(true),
        Some(status @ (MigrationStatus::Failed | MigrationStatus::Cancelled)) => {
            Err(MigrateError::MigrationEnded {
                status: status.to_string(),
                reason: None,
            })
        }
        _ => Ok(false),
    }
}

impl Paused {
    /// The one irrevocable step. Where [`fate`] says that it had an effect or may have had one, no error comes out of here that
    /// could resume the VM.
    pub(crate) async fn commit(self, run: &mut Run) -> Result<Committed, MigrateError> {
        run.diary.note(&Record::CommitSent)?;
        tracing::info!(drives_handed_over = self.drives.is_some(), "COMMIT");
        let asked = self
            .armed
            .prepared
            .peer
            .client()
            .request(&Request::Commit, deadline::COMMIT)
            .await;
        run.report.cutover.committed_ms = Some(ms_since(self.moments.flip));
        match fate(asked) {
            Fate::Committed(running) => {
                if matches!(running, Running::Yes(_)) {
                    run.diary.mention(&Record::Running);
                    let hooks = self
                        .armed
                        .lanes
                        .iter()
                        .filter_map(|lane| lane.hooks.as_ref());
                    for error in hooks.filter_map(|hooks| hooks.stop_retaining().err()) {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "packets go on being copied"
                        );
                    }
                }
                Ok(Committed::new(self.armed, self.moments, running))
            }
            Fate::NoEffect(error) => {
                run.diary.note(&Record::CommitHadNoEffect)?;
                Err(error).doing("commit")
            }
        }
    }
}

/// How long the map write took, in microseconds.
pub(crate) fn write_us(flip: FlipTime) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds, shown with one decimal"
    )]
    let us = flip.after_ns.saturating_sub(flip.before_ns) as f64 / 1000.0;
    us
}

pub(crate) fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
