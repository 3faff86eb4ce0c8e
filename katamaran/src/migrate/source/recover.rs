//! Packets that a stopped VM did not get, because QEMU stopped it before the redirect was in place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::FRAME_LIMIT;
use crate::deadline;
use crate::ebpf::CopiedFrame;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{Reply, Request, WireFrame};
use crate::migrate::tap_watch::lock;
use crate::net::NetError;
use crate::net::packet::{FrameInjector, VnetHeader};
use crate::net::tapfd::{TapFrame, TapQueues};
use crate::qmp::Event;
use crate::wall_clock::now_us;

use super::Run;
use super::arm::Armed;
use super::cutover::{Moments, flip_all, ms_since, write_us};
use super::hooks::Hooks;
use super::lane::{Lane, StoppedTap};
use super::peer::Peer;

/// How long the ring may keep filling while it is emptied, before the flip comes all the same.
const EMPTY_BUDGET: Duration = Duration::from_secs(2);
/// How long a packet takes, at most, from the hook into the tap's ring.
const SETTLE: Duration = Duration::from_millis(20);

/// QEMU stopped the VM by itself while packets were still passed to it. They sit in the tap's
/// ring, older than anything that is redirected from now on, so they are delivered first, round after
/// round, until the ring is empty; only then the flip. The first packet after the stop is not in the
/// ring: a stopped QEMU reads one and keeps it. It is found in the program's copies. What may be gone is
/// one that came while QEMU waited for the vCPUs to stand still: it is queued, since the VM is no longer
/// said to run, and discarded with the queue (`do_vm_stop()`, `net_vm_change_state_handler()`). Nobody
/// counts it, and it can't be told from one that the VM has.
pub(crate) async fn after_early_stop(
    armed: &mut Armed,
    run: &mut Run,
    stop: &Event,
) -> Result<Moments, MigrateError> {
    let (peer, qemu_pid) = (&armed.prepared.peer, armed.prepared.node.qemu_pid);
    for lane in armed.lanes.iter_mut().filter(|lane| lane.hooks.is_some()) {
        lane.kept.begin(&lane.queues(qemu_pid)?);
        deliver_first(peer, lane, stop).await?;
        let end = Instant::now() + EMPTY_BUDGET;
        loop {
            let more = lane.kept.read()?;
            deliver_from_ring(peer, lane, &more).await?;
            if more.is_empty() || Instant::now() >= end {
                break;
            }
        }
    }

    let flip_us = now_us();
    let flip = Instant::now();
    let flip_time = flip_all(armed)?;
    run.report.cutover.flip_us = flip_time.map(|_| flip_us);
    run.report.cutover.flip_write_us = flip_time.map(write_us);
    for lane in &mut armed.lanes {
        settle(lane).await;
        let between = lane.kept.read()?;
        deliver_from_ring(&armed.prepared.peer, lane, &between).await?;
        lane.stopped = Some(StoppedTap {
            drained: lane.balance(),
            unread: true,
            ring_unseen: false,
        });
    }

    run.report.cutover.drained_ms = flip_time.map(|_| ms_since(flip));
    run.report.cutover.stopped_ms = flip_time.map(|_| 0.0);
    if flip_time.is_some() {
        let lost = armed
            .lanes
            .iter()
            .any(|lane| lane.recovered.beyond_recovery > 0);
        run.report.warnings.push(format!(
            "QEMU stopped the VM before the redirect was in place; {} packets were recovered from its tap{}",
            recovered(armed),
            if lost { ", one that QEMU had swallowed was not" } else { "" },
        ));
    }
    Ok(Moments {
        flip,
        flip_us,
        flip_time,
        stopped_us: stop.timestamp_us,
    })
}

/// The VM was stopped after it had read no more for a while. What it left in its taps is older than what was redirected, and is
/// delivered ahead of that where a plug holds it, and behind it where the destination tap's ring does.
pub(crate) async fn after_stalled_drain(
    armed: &mut Armed,
    run: &mut Run,
    queues: &[Option<Arc<TapQueues>>],
    stop: &Event,
) -> Result<(), MigrateError> {
    for (lane, queues) in armed.lanes.iter_mut().zip(queues) {
        if let Some(queues) = queues {
            lane.kept.begin(queues);
            deliver_first(&armed.prepared.peer, lane, stop).await?;
        }
    }
    run.report.warnings.push(format!(
        "the VM no longer read its packets; {} were recovered from its tap once it had stopped",
        recovered(armed)
    ));
    Ok(())
}

/// How many were delivered in place of QEMU.
fn recovered(armed: &Armed) -> u64 {
    let lanes = armed.lanes.iter();
    lanes.map(|lane| lane.recovered.into_destination_tap).sum()
}

/// The packet that the stopped QEMU has swallowed, then what is in the ring.
async fn deliver_first(peer: &Peer, lane: &mut Lane, stop: &Event) -> Result<(), MigrateError> {
    let Some(hooks) = &lane.hooks else {
        return Ok(());
    };
    // What is copied from now on would only push the one that matters out.
    hooks
        .with(|d| d.set_copy_ring(false))
        .transpose()
        .doing("keep the copies")?;
    let first = lane.kept.read()?;
    let swallowed = swallowed_frame(hooks, &first, stop);
    if let Some(frame) = &swallowed {
        lane.kept.note_swallowed(frame);
    }
    lane.recovered.swallowed = u64::from(swallowed.is_some());
    if swallowed.is_none() && !first.is_empty() {
        // It was read by QEMU and is in none of the copies: one packet that nobody can bring back.
        lane.recovered.beyond_recovery = 1;
    }
    deliver(peer, lane, swallowed.into_iter().collect()).await?;
    deliver_from_ring(peer, lane, &first).await
}

async fn deliver_from_ring(
    peer: &Peer,
    lane: &mut Lane,
    frames: &[TapFrame],
) -> Result<(), MigrateError> {
    lane.recovered.from_source_tap += frames.len() as u64;
    deliver(peer, lane, frames.iter().map(WireFrame::from).collect()).await
}

async fn deliver(peer: &Peer, lane: &mut Lane, frames: Vec<WireFrame>) -> Result<(), MigrateError> {
    lane.recovered.into_destination_tap += inject_at_destination(peer, frames, lane.number).await?;
    Ok(())
}

/// Waits until what the hook passed is in the ring.
async fn settle(lane: &Lane) {
    let end = Instant::now() + SETTLE;
    while lane.hooks.is_some() && Instant::now() < end {
        lane.observe();
        if lock(&lane.watch)
            .balance()
            .is_some_and(|b| b.not_enqueued == 0)
        {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// The packet before the first unread one; with nothing unread, the only one passed after the stop.
fn swallowed_frame(hooks: &Hooks, unread: &[TapFrame], stop: &Event) -> Option<WireFrame> {
    let copies: Vec<CopiedFrame> = hooks.with(|d| d.copied_frames())?.ok()?;
    let copy = match unread.first() {
        Some(first) => {
            let index = copies
                .iter()
                .rposition(|c| is_copy_of(&c.bytes, &first.frame))?;
            copies.get(index.checked_sub(1)?)?
        }
        None => {
            let stopped_ns = monotonic_ns(stop)?;
            let last_passed = hooks.counters().ok()?.last_passed_ns?;
            if i128::from(last_passed) < stopped_ns {
                return None;
            }
            copies.last()?
        }
    };
    copy.is_whole()
        .then(|| WireFrame::new(VnetHeader::default(), &copy.bytes))
}

/// A copy has its checksum filled in; a frame in the ring may leave that to the guest.
fn is_copy_of(copy: &[u8], frame: &[u8]) -> bool {
    const CHECKSUM: usize = 2;
    copy.len() == frame.len() && copy.iter().zip(frame).filter(|(a, b)| a != b).count() <= CHECKSUM
}

/// The event's time on the clock that the programs use (CLOCK_MONOTONIC).
fn monotonic_ns(event: &Event) -> Option<i128> {
    let ago_us = i128::from(now_us()) - i128::from(event.timestamp_us?);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    Some(i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec()) - ago_us * 1000)
}

async fn inject_at_destination(
    peer: &Peer,
    frames: Vec<WireFrame>,
    nic: usize,
) -> Result<u64, MigrateError> {
    let mut injected = 0;
    for batch in batches(frames) {
        match peer
            .ask(
                "deliver recovered packets",
                Request::Inject { frames: batch, nic },
                deadline::REQUEST,
            )
            .await?
        {
            Reply::Injected { frames } => injected += frames,
            _ => return Err(MigrateError::OutOfStep { what: "Inject" }),
        }
    }
    Ok(injected)
}

/// Cuts frames into requests that stay below the frame limit of the session.
pub(crate) fn batches(frames: Vec<WireFrame>) -> Vec<Vec<WireFrame>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut size = 0;
    for frame in frames {
        // base64 needs 4 characters for 3 bytes; half the limit leaves room for everything else.
        let encoded = frame.0.len() * 4 / 3 + 8;
        if size + encoded > FRAME_LIMIT / 2 && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            size = 0;
        }
        size += encoded;
        batch.push(frame);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Puts frames, each with its virtio_net_hdr in front, into a tap.
pub(crate) fn inject(injector: &mut FrameInjector, frames: &[WireFrame]) -> Result<(), NetError> {
    for (header, frame) in frames.iter().filter_map(WireFrame::split) {
        injector.inject(header, frame)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_order_and_stay_below_the_limit() {
        let frames: Vec<WireFrame> = (0..2000u32)
            .map(|n| WireFrame([&n.to_be_bytes()[..], &[0; 1500]].concat()))
            .collect();
        let batches = batches(frames.clone());
        assert!(batches.len() > 1);
        for batch in &batches {
            assert!(serde_json::to_string(batch).unwrap().len() < FRAME_LIMIT);
        }
        assert_eq!(batches.concat(), frames);
    }
}
