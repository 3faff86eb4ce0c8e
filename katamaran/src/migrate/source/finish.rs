//! After COMMIT: the VM is the destination's. Linger while packets still arrive here, compare the
//! ledgers, clean up. No path in this file resumes the VM.

use std::time::{Duration, Instant};

use crate::cli::SourceVm;
use crate::deadline;
use crate::ebpf::{FlipTime, PacketDrop};
use crate::migrate::error::{MigrateError, chain};
use crate::migrate::ledger::{Count, DestinationLedger, DropRecord, Hop, SourceLedger, TapBalance};
use crate::migrate::message::{Reply, Request, Resumed, Summary};
use crate::migrate::quiet::until_quiet;
use crate::migrate::reconcile;
use crate::migrate::report::{Outcome, Report};
use crate::migrate::rollback::Undone;
use crate::migrate::several::{Settled, together};
use crate::qmp::command::{QueryMigrate, Quit};

use crate::session_id::SessionId;

use super::Run;
use super::arm::Armed;
use super::cutover::Moments;
use super::hooks::{Hooks, towards_tap};
use super::lane::Lane;

/// What the destination said to COMMIT.
#[derive(Debug)]
pub(crate) enum Running {
    Yes(Resumed),
    /// It may run the VM, or not: nobody here can tell.
    Unknown(MigrateError),
}

/// Past the point of no return.
pub(crate) struct Committed {
    armed: Armed,
    moments: Moments,
    running: Running,
}

impl Committed {
    pub(crate) fn new(armed: Armed, moments: Moments, running: Running) -> Self {
        Self {
            armed,
            moments,
            running,
        }
    }

    /// Finishes what COMMIT began. Whatever fails from here on is reported and changes nothing about
    /// where the VM runs.
    pub(crate) async fn finish(self, mut run: Run) -> Report {
        let mut cleanup = std::mem::take(&mut run.undo).commit();
        match &self.running {
            Running::Yes(resumed) => {
                self.note_times(&mut run, *resumed).await;
                run.report.outcome = Outcome::Migrated;
                run.progress.begin("linger");
                run.connections.linger();
                self.linger(&mut run).await;
                run.connections.end().await;
                run.progress.begin("reconcile");
                self.reconcile(&mut run).await;
                let ended = self.end_source_vm(&mut run).await;
                note_shared_volumes(&mut run, ended);
            }
            Running::Unknown(error) => {
                // Packets go on to where the VM may be, and copies are kept for where it may be as well.
                cleanup.keep_way();
                run.report.outcome = Outcome::Undecided;
                run.report.error = Some(undecided(run.session, error));
                run.report.shared_volumes = run.shared.report(false);
                tracing::error!(error = chain(error), "COMMIT was sent and not answered");
            }
        }
        run.progress.begin("clean up");
        run.report.cleanup = cleanup.run(deadline::UNDO).await;
        if run.report.outcome == Outcome::Migrated {
            run.diary.close(&run.report.cleanup);
            self.say_goodbye(&mut run).await;
        }
        run.progress.end();
        note_connections(&mut run);
        let mut report = run.report;
        report.phases = run.progress.phases().to_vec();
        report
    }

    async fn note_times(&self, run: &mut Run, resumed: Resumed) {
        run.report.note_held(resumed.held);
        let clock = self.armed.prepared.peer.client().clock();
        let Some(clock) = clock else { return };
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds, shown with one decimal"
        )]
        let (offset_us, rtt_us) = (
            clock.offset_ns as f64 / 1000.0,
            clock.rtt_ns as f64 / 1000.0,
        );
        run.report.clock_offset_us = Some(offset_us);
        run.report.clock_rtt_us = Some(rtt_us);
        #[expect(
            clippy::cast_precision_loss,
            reason = "differences of less than an hour"
        )]
        let between = |from_us: i64, to_us: i64| ((to_us - from_us) as f64 - offset_us) / 1000.0;
        if let Some(stopped) = self
            .moments
            .stopped_us
            .and_then(|us| i64::try_from(us).ok())
        {
            run.report.downtime_ms = Some(between(stopped, resumed.resumed_at_us));
        }
        if self.armed.redirects() {
            run.report.blackout_ms = Some(between(self.moments.flip_us, resumed.released_at_us));
        }
        run.report.cutover.released_ms =
            Some(between(self.moments.flip_us, resumed.released_at_us));
        if let Ok(info) = self.armed.prepared.node.qmp.execute(QueryMigrate).await {
            run.report.qemu_downtime_ms = info.downtime;
            if let (Some(ram), Some(told)) = (run.report.ram.as_mut(), info.ram) {
                ram.transferred = told.transferred.unwrap_or(ram.transferred);
                ram.passes = told.dirty_sync_count.unwrap_or(ram.passes);
            }
        }
    }

    /// Keeps redirecting until no packet has come for a while. A signal does not end this early: the
    /// packets that still come would be lost.
    async fn linger(&self, run: &mut Run) {
        let hooks: Vec<&Hooks> = self.hooks().collect();
        if hooks.is_empty() {
            return;
        }
        let limit = run.config.linger_limit;
        let cutover = &mut run.report.cutover;
        let arrived = || {
            if cutover.first_redirect_us.is_none() {
                let first = |hooks: &&Hooks| first_redirect_us(hooks, self.moments.flip_time);
                cutover.first_redirect_us = hooks.iter().filter_map(first).reduce(f64::min);
            }
            let arrived = |hooks: &&Hooks| Some(hooks.counters().ok()?.s1.packets);
            hooks.iter().map(arrived).sum()
        };
        let tell = |redirected| {
            tracing::info!(redirected, "packets still arrive here and are redirected");
        };
        if !until_quiet(deadline::QUIET, limit, arrived, tell).await {
            run.report.warnings.push(format!(
                "packets for the VM still arrived here {} s after the cutover: the network does not send them to the \
                 destination yet, and they are lost from now on; raise --cni-convergence-delay",
                limit.as_secs()
            ));
        }
    }

    fn hooks(&self) -> impl Iterator<Item = &Hooks> {
        self.armed
            .lanes
            .iter()
            .filter_map(|lane| lane.hooks.as_ref())
    }

    async fn reconcile(&self, run: &mut Run) {
        let mut settled = Vec::new();
        for lane in &self.armed.lanes {
            let source = self.source_ledger(lane);
            let destination = match self.ask_ledger(lane, &source).await {
                Ok(ledger) => ledger,
                Err(why) => {
                    run.report.warnings.push(why);
                    DestinationLedger::default()
                }
            };
            settled.push(Settled {
                tap: lane.way.nic.tap.name.clone(),
                addresses: lane.way.addresses.clone(),
                result: reconcile::reconcile(&source, &destination, lane.recovered),
                source,
                destination,
                recovered: lane.recovered,
            });
        }
        let Some((result, ledger, nics)) = together(settled) else {
            return;
        };
        run.report.verdict = result.verdict;
        run.report.unproven = result.unavailable;
        run.report.drops = ledger.drops().cloned().collect();
        run.report.ledger = Some(ledger);
        run.report.nics = nics;
    }

    /// The destination's half, or why it could not be had.
    async fn ask_ledger(
        &self,
        lane: &Lane,
        source: &SourceLedger,
    ) -> Result<DestinationLedger, String> {
        let request = Request::Reconcile {
            redirected: source.s3.map(|c| c.packets),
            nic: lane.number,
        };
        let peer = &self.armed.prepared.peer;
        let asked = peer.ask("get the destination's ledger", request, deadline::RECONCILE);
        match asked.await {
            Ok(Reply::Ledger(ledger)) => Ok(*ledger),
            Ok(_) => Err("the destination answered Reconcile with something else".into()),
            Err(error) => Err(format!(
                "the destination's ledger could not be had: {}",
                chain(&error)
            )),
        }
    }

    fn source_ledger(&self, lane: &Lane) -> SourceLedger {
        let Some(hooks) = &lane.hooks else {
            return SourceLedger::default();
        };
        let Ok(counters) = hooks.counters() else {
            return SourceLedger::default();
        };
        let count = |c: crate::ebpf::Count| Count {
            packets: c.packets,
            bytes: c.bytes,
        };
        let hop = |drop: &PacketDrop| {
            let device = Some(drop.ifindex);
            let way = &lane.way;
            if drop.tunnel.is_some() || device == hooks.tunnel_device() {
                Hop::Tunnel
            } else if way.nic.is_behind_last_device(drop.netns_inum, drop.ifindex)
                || drop.ifindex == way.hook.device.index
            {
                Hop::SourceTap
            } else {
                Hop::SourceHost
            }
        };
        SourceLedger {
            s1: Some(count(counters.s1)),
            s2: Some(count(counters.s2)),
            s3: Some(count(counters.s3)),
            digest: Some(counters.digest_s3),
            tap: tap_balance(lane, towards_tap(&counters)),
            encap_failed: Some(counters.encap_failed.packets + counters.too_big.packets),
            drops: hooks.drops().map(|drops| drop_records(&drops, hop)),
            stopped_unread: lane.stopped.is_none_or(|stopped| stopped.unread),
            ring_unseen: lane.stopped.is_none_or(|stopped| stopped.ring_unseen),
            queue_reset: hooks.with(|d| d.has_reset_a_queue()).unwrap_or(true),
        }
    }

    /// Whether the source's QEMU has ended.
    async fn end_source_vm(&self, run: &mut Run) -> bool {
        if run.config.source_vm == SourceVm::Keep {
            run.report.warnings.push(
                "the VM's QEMU stays on the source, stopped: never resume it (--source-vm keep)"
                    .into(),
            );
            return false;
        }
        let qmp = &self.armed.prepared.node.qmp;
        let quit = qmp.execute(Quit).await;
        if let Err(error) = quit
            && !error.is_closed()
        {
            run.report
                .warnings
                .push(format!("the source's QEMU did not quit: {}", chain(&error)));
            return false;
        }
        // QEMU closes its disks before its monitor.
        let end = Instant::now() + deadline::QMP_RUN_STATE;
        while !run.shared.is_empty() && !qmp.is_closed() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        run.shared.is_empty() || qmp.is_closed()
    }

    async fn say_goodbye(&self, run: &mut Run) {
        let summary = Summary {
            verdict: run.report.verdict,
            ledger: run.report.ledger.clone().map(Box::new),
            unproven: run.report.unproven.clone(),
        };
        let finish = Request::Finish { summary };
        match self
            .armed
            .prepared
            .peer
            .ask("finish on the destination", finish, deadline::RECONCILE)
            .await
        {
            Ok(Reply::Finished { left_behind }) => {
                run.report
                    .cleanup
                    .extend(left_behind.into_iter().map(|what| Undone {
                        what: format!("on the destination: {what}"),
                        error: Some("could not be undone; see the destination's report".into()),
                        elsewhere: true,
                    }))
            }
            Ok(_) => run
                .report
                .warnings
                .push("the destination answered Finish with something else".into()),
            Err(error) => run.report.warnings.push(format!(
                "the destination did not confirm its clean-up: {}",
                chain(&error)
            )),
        }
    }
}

/// What the VM's QEMU never read: as of its stop, and everything of the VM's that was
/// passed later, to a VM that no longer runs.
fn tap_balance(lane: &Lane, passed_now: u64) -> Option<TapBalance> {
    let (passed, balance) = lane.stopped?.drained?;
    Some(TapBalance {
        unread: balance.unread + passed_now.saturating_sub(passed),
        ..balance
    })
}

/// How long both nodes had the volumes, and whether that was longer than the user allows: after COMMIT
/// nothing can be called off.
fn note_shared_volumes(run: &mut Run, ended: bool) {
    run.report.shared_volumes = run.shared.report(ended);
    let Some(since) = run.shared.since() else {
        return;
    };
    let names = run.shared.names().join(", ");
    if !ended {
        run.report.warnings.push(format!(
            "the source's QEMU, stopped, still has {names} open, without the right to write: end it"
        ));
    } else if since.elapsed() > run.config.migration_timeout {
        run.report.warnings.push(format!(
            "both nodes had {names} open for {:.1} s, longer than --migration-timeout {} s: the time was over after COMMIT",
            since.elapsed().as_secs_f64(),
            run.config.migration_timeout.as_secs()
        ));
    }
}

/// What became of the VM's connections, and what the user has to know of it.
fn note_connections(run: &mut Run) {
    run.report.conntrack = run.connections.report();
    let Some(report) = &run.report.conntrack else {
        return;
    };
    let warnings = report.warnings();
    run.report.warnings.extend(warnings);
}

/// The kernel's drops as the ledger keeps them. A packet socket that can't keep up loses copies, which
/// are not the VM's packets.
pub(crate) fn drop_records(
    drops: &[PacketDrop],
    hop: impl Fn(&PacketDrop) -> Hop,
) -> Vec<DropRecord> {
    drops
        .iter()
        .filter(|drop| !drop.is_no_loss())
        .map(|drop| DropRecord {
            hop: hop(drop),
            reason: drop.reason.clone(),
            location: drop
                .symbol
                .clone()
                .unwrap_or_else(|| format!("{:#x}", drop.location)),
            count: drop.packets,
        })
        .collect()
}

/// Map write to the first packet that went the new way, in microseconds, both on the kernel's clock.
fn first_redirect_us(hooks: &Hooks, flip: Option<FlipTime>) -> Option<f64> {
    let first = hooks.counters().ok()?.first_redirected_ns?;
    let nanoseconds = first.saturating_sub(flip?.before_ns);
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds, shown with one decimal"
    )]
    let us = nanoseconds as f64 / 1000.0;
    Some(us)
}

fn undecided(session: SessionId, error: &MigrateError) -> String {
    format!(
        "COMMIT was sent, but its answer did not come ({}). The VM stays stopped on the source. Run `katamaran resolve {session}` \
         on the destination: it says where the VM is, and what to run here. Do not resume it by hand: it may run there. Until then its \
         packets go to the destination, and copies of them are kept here",
        chain(error)
    )
}
