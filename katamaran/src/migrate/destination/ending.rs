//! How a session ends: held packets are given back, the incoming VM is destroyed, everything is undone.

use std::time::{Duration, Instant};

use crate::deadline;
use crate::discover;
use crate::journal::Record;
use crate::migrate::error::chain;
use crate::migrate::message::WireFrame;
use crate::migrate::quiet::until_quiet;
use crate::net::packet::is_bait;
use crate::net::tapfd::TapQueues;

use super::delivery::Delivery;
use super::guest;
use super::session::Session;
use super::stage::Stage;

/// Packets given back in one reply.
const RETURN_BATCH: usize = 256;
/// Without a source to tell us, packets through the tunnel count as over after this long.
const ORPHAN_QUIET: Duration = Duration::from_secs(5);
/// The least that is waited for that.
const ORPHAN_LIMIT: Duration = Duration::from_secs(60);

/// How a session ended.
pub(crate) enum End {
    /// The VM runs here.
    Migrated,
    /// COMMIT came, and the VM could not be run.
    Undecided { reason: String },
    /// It can't run here; nothing was changed.
    Refused { reason: String },
    /// It does not run here, and never did.
    GivenUp { reason: String },
}

impl Session<'_> {
    /// Held packets, oldest first. The incoming QEMU is ended before the first batch; the tap's ring lives
    /// on behind a duplicate of its descriptor.
    pub(super) async fn give_back(&mut self, nic: usize) -> (Vec<WireFrame>, bool) {
        if self.stage != Stage::Aborted {
            self.destroy_incoming().await;
        }
        let ring = self.deliveries.get(nic).and_then(|d| d.ring.as_ref());
        let Some(held) = ring else {
            return (Vec::new(), false);
        };
        let mut frames = Vec::new();
        if let Err(error) = held.read_into(&mut frames, RETURN_BATCH) {
            self.warn(
                "held packets could not be read from the tap",
                &chain(&error),
            );
        }
        let more = frames.len() == RETURN_BATCH;
        let frames = frames
            .iter()
            .filter(|f| !is_bait(&f.frame))
            .map(WireFrame::from)
            .collect();
        (frames, more)
    }

    /// At most one copy of the VM ever runs: before COMMIT ours is destroyed. A QEMU that was not asked to
    /// receive anything yet is left as it was, for the next try.
    async fn destroy_incoming(&mut self) {
        if self.stage < Stage::Listening || self.stage >= Stage::Committed {
            return;
        }
        let mut problems = Vec::new();
        for delivery in &self.deliveries {
            problems.extend(delivery.release().await.err());
        }
        for error in problems {
            self.warn(
                "held packets could not be released into the tap",
                &chain(&error),
            );
        }
        self.qemu_gone = true;
        if let Err(error) = guest::destroy(&self.node.qmp).await {
            tracing::error!(error, "the incoming QEMU did not end: end it by hand");
            self.report
                .warnings
                .push(format!("the incoming QEMU did not end: {error}"));
        }
    }

    /// Of the incoming QEMU's taps; without one a tap's ring dies with it.
    pub(super) fn duplicate_taps(&mut self) {
        let pid = self.node.qemu_pid;
        let duplicate = |delivery: &Delivery| {
            let pid = pid.ok_or("QEMU's process is not known")?;
            let name = &delivery.nic.tap.name;
            let tap = discover::tap(pid, Some(name)).map_err(|e| chain(&e))?;
            TapQueues::duplicate_fds(pid, &tap.name, &tap.descriptors).map_err(|e| chain(&e))
        };
        let mut problems: Vec<String> = Vec::new();
        for delivery in &mut self.deliveries {
            match duplicate(delivery) {
                Ok(ring) => delivery.ring = Some(ring),
                Err(error) => problems.push(error),
            }
        }
        for error in problems {
            self.warn("packets could not be given back", &error);
        }
    }

    pub(super) fn let_go_of_rings(&mut self) {
        for delivery in &mut self.deliveries {
            delivery.ring = None;
        }
    }

    fn warn(&mut self, what: &str, why: &str) {
        tracing::warn!(error = why, "{what}");
        self.report.warnings.push(format!("{what}: {why}"));
    }

    pub(super) async fn clean_up(&mut self) {
        self.report.shared_volumes = self.shared.report(self.stage >= Stage::Committed);
        for delivery in self.deliveries.iter().filter(|_| self.running) {
            if let Err(error) = delivery.keep().await {
                self.report.warnings.push(chain(&error));
            }
        }
        if let Some(relay) = self.relay.take() {
            relay.shutdown().await;
        }
        if let Some(mut exported) = self.exported.take() {
            exported.cut().await;
        }
        let undo = std::mem::take(&mut self.undo);
        let undone = if self.running || self.is_undecided() {
            let mut cleanup = undo.commit();
            // The VM may yet run here: what is held for it stays held, and what still comes is delivered.
            if self.is_undecided() {
                cleanup.keep_way();
            }
            cleanup.run(deadline::UNDO).await
        } else {
            undo.unwind(deadline::UNDO).await
        };
        self.report.cleanup.extend(undone);
    }

    /// COMMIT came, and the VM could not be run.
    fn is_undecided(&self) -> bool {
        matches!(self.stage, Stage::Committed | Stage::Finished) && !self.running
    }

    /// The session is over, one way or another.
    pub(super) async fn close(mut self) -> End {
        if self.is_undecided() {
            self.clean_up().await;
            self.server.close().await;
            let reason = self.reason.unwrap_or_default();
            return End::Undecided { reason };
        }
        if matches!(self.stage, Stage::Committed | Stage::Finished) {
            if self.announce_at.is_some() {
                self.announce().await;
            }
            if self.stage == Stage::Committed {
                self.outlive_source().await;
                self.clean_up().await;
                // The source may not know.
                self.diary.settle(&self.report.cleanup);
            } else {
                self.diary.close(&self.report.cleanup);
            }
            self.server.close().await;
            return End::Migrated;
        }
        if self.stage != Stage::Aborted {
            self.destroy_incoming().await;
        }
        self.let_go_of_rings();
        self.clean_up().await;
        self.server.close().await;
        let mut reason = self
            .reason
            .take()
            .unwrap_or_else(|| "the source left".to_owned());
        if let Some(receipt) = self.end_diary().await {
            reason.push_str(&receipt);
        }
        if self.refused {
            End::Refused { reason }
        } else {
            End::GivenUp { reason }
        }
    }

    /// What an operator may have to tell a source that sent a COMMIT which never came here. One that asked for an abort has
    /// sent none.
    async fn end_diary(&mut self) -> Option<String> {
        let vm = self.vm.as_ref();
        let receipts = vm.and_then(|vm| vm.receipts.as_ref());
        let (Some(receipts), Stage::Blocked) = (receipts, self.stage) else {
            self.diary.close(&self.report.cleanup);
            return None;
        };
        let end = Instant::now() + deadline::QMP_RUN_STATE;
        while !self.node.qmp.is_closed() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if !self.node.qmp.is_closed() {
            let what = vec!["the incoming QEMU".to_owned()];
            self.diary.mention(&Record::Left { what });
            return None;
        }
        self.diary.note(&Record::Discarded).ok()?;
        self.diary.settle(&self.report.cleanup);
        Some(format!(
            ". If the source says undecided, run there: katamaran resolve {} --destination-discarded {}",
            self.id, receipts.discarded
        ))
    }

    /// The source can't tell us any more when its last packet was redirected: deliver until none
    /// has come for a while.
    async fn outlive_source(&self) {
        let arrived = || {
            let deliveries = self.deliveries.iter();
            deliveries.map(Delivery::arrived_through_tunnel).sum()
        };
        let convergence = self.vm.as_ref().and_then(|vm| vm.convergence_s);
        let limit = convergence.map_or(ORPHAN_LIMIT, |s| ORPHAN_LIMIT.max(Duration::from_secs(s)));
        until_quiet(ORPHAN_QUIET, limit, arrived, |_| ()).await;
    }
}
