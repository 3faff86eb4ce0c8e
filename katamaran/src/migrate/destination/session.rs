//! One session with a source: requests in, replies out, one at a time; and what QEMU, the
//! relay or a signal have to say meanwhile.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::control::{
    ControlConnection, ControlError, Fault, FaultCode, RequestId, Requests, Server, Stream,
    StreamKind, Timing,
};
use crate::deadline;
use crate::migrate::error::{MigrateError, chain};
use crate::migrate::ledger::DestinationLedger;
use crate::migrate::message::{
    MigrationProtocol, Notice, PROTOCOL, Prepared, Reply, Request, VmDescription, WireFrame,
};
use crate::migrate::node::{Node, kernel_release, make_private, relay_directory};
use crate::migrate::progress::Progress;
use crate::migrate::report::{Report, Role};
use crate::migrate::rollback::UndoStack;
use crate::migrate::shared::{self, Held};
use crate::net::packet::is_bait;
use crate::net::tapfd::TapQueues;
use crate::qmp::command::MigrationStatus;
use crate::qmp::{Event, QmpError};
use crate::relay::DestinationRelay;
use crate::session_id::SessionId;

use super::delivery::Delivery;
use super::guest;
use super::neighbours;
use super::stage::{self, Stage};

/// Packets given back in one reply.
const RETURN_BATCH: usize = 256;
/// A source that asked for an abort comes back for the rest within this time.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);
/// Without a source to tell us, packets through the tunnel count as over after this long.
const ORPHAN_QUIET: Duration = Duration::from_secs(5);
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

struct Session<'a> {
    id: SessionId,
    node: Node,
    server: Server<MigrationProtocol>,
    relay: Option<DestinationRelay>,
    progress: &'a mut Progress,
    report: &'a mut Report,
    undo: UndoStack,
    stage: Stage,
    vm: Option<VmDescription>,
    delivery: Option<Delivery>,
    shared: Held,
    loaded: bool,
    /// The VM runs here.
    running: bool,
    qemu_gone: bool,
    /// Keeps the tap and its ring alive while held packets are given back.
    held: Option<TapQueues>,
    reason: Option<String>,
    /// We found ourselves that it can't work, before anything was changed.
    refused: bool,
}

/// Serves one source to the end, and undoes everything that was set up.
pub(crate) async fn serve(
    node: Node,
    mut connection: ControlConnection,
    progress: &mut Progress,
    report: &mut Report,
    stop: &CancellationToken,
) -> End {
    let id = connection.session;
    let Some(io) = connection.io.take() else {
        return End::GivenUp {
            reason: "the connection is in use".to_owned(),
        };
    };
    tracing::info!(session = %id, source = %connection.peer, "a source has come");
    let (server, mut requests) = Server::start(io, Timing::default());
    let mut session = Session {
        id,
        node,
        server,
        relay: None,
        progress,
        report,
        undo: UndoStack::default(),
        stage: Stage::Connected,
        vm: None,
        delivery: None,
        shared: Held::default(),
        loaded: false,
        running: false,
        qemu_gone: false,
        held: None,
        reason: None,
        refused: false,
    };
    session.progress.begin("prepare");
    session.attend(&mut requests, &mut connection, stop).await;
    session.close().await
}

impl Session<'_> {
    /// Until the source is finished with us, or gone.
    async fn attend(
        &mut self,
        requests: &mut Requests<MigrationProtocol>,
        connection: &mut ControlConnection,
        stop: &CancellationToken,
    ) {
        let mut told_to_stop = false;
        let mut patience: Option<tokio::time::Instant> = None;
        while self.stage != Stage::Finished {
            let give_up_at = patience;
            tokio::select! {
                biased;
                request = requests.next() => match request {
                    Ok((id, request)) => {
                        if let Request::Abort { .. } = request {
                            patience = Some(tokio::time::Instant::now() + ABORT_PATIENCE);
                        }
                        if self.answer(id, request).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => return self.source_lost(&error),
                },
                stream = connection.next_stream() => self.take_stream(stream).await,
                event = self.node.events.recv(), if !self.qemu_gone => self.on_event(event),
                () = stop.cancelled(), if !told_to_stop => {
                    told_to_stop = true;
                    // After COMMIT the VM runs here: a signal finishes the job.
                    if self.stage < Stage::Committed {
                        patience = Some(tokio::time::Instant::now() + ABORT_PATIENCE);
                        self.give_up("the destination was interrupted");
                    }
                }
                () = sleep_until(give_up_at), if give_up_at.is_some() => return,
            }
        }
    }

    async fn answer(&mut self, id: RequestId, request: Request) -> Result<(), ControlError> {
        let next = match stage::next(self.stage, &request, self.loaded) {
            Ok(next) => next,
            Err(fault) => return self.server.reply(id, Err(fault)),
        };
        tracing::debug!(from = %self.stage, to = %next, "stage");
        // COMMIT takes effect even if the reply can't be delivered.
        if next == Stage::Committed {
            self.stage = next;
        }
        let announce = matches!(request, Request::Commit);
        let result = self.act(request).await;
        if result.is_ok() {
            self.stage = next;
        }
        let running = announce && result.is_ok();
        let reply = result.map_err(|error| {
            tracing::error!(error = chain(&error), "refused");
            self.reason.get_or_insert_with(|| chain(&error));
            self.refused |= next <= Stage::Prepared;
            Fault::new(FaultCode::Failed, chain(&error))
        });
        let sent = self.server.reply(id, reply);
        if running && let Err(error) = guest::announce(&self.node.qmp).await {
            tracing::warn!(error = chain(&error), "the VM was not announced");
            self.report.warnings.push(chain(&error));
        }
        sent
    }

    async fn act(&mut self, request: Request) -> Result<Reply, MigrateError> {
        match request {
            Request::Hello { versions, software } => {
                let version = crate::control::select(&versions, &[PROTOCOL]).ok_or_else(|| {
                    crate::migrate::node::refused(format!(
                        "the source (katamaran {software}) speaks session versions {versions:?}, this one speaks {PROTOCOL}"
                    ))
                })?;
                Ok(Reply::Hello {
                    version,
                    software: env!("CARGO_PKG_VERSION").to_owned(),
                })
            }
            Request::Prepare(vm) => {
                guest::compare(&self.node, &vm).await?;
                self.vm = Some(vm);
                Ok(Reply::Prepared(Prepared {
                    qemu_version: self.node.qemu_version(),
                    tap: self.node.tap.name.clone(),
                    kernel: kernel_release(),
                }))
            }
            Request::Attach(offer) => {
                let (answer, held) =
                    shared::attach_destination(&self.node, self.id, offer, &mut self.undo).await?;
                self.shared = held;
                Ok(Reply::Attached(answer))
            }
            Request::Arm(arm) => {
                self.progress.begin("arm");
                let vm = self
                    .vm
                    .as_ref()
                    .ok_or(MigrateError::OutOfStep { what: "Arm" })?;
                let delivery = Delivery::arm(&self.node, self.id, vm, &arm, &mut self.undo).await?;
                let buffer = delivery.buffer;
                self.report.tunnel = Some(arm.tunnel);
                self.report.buffer = Some(buffer);
                self.delivery = Some(delivery);
                Ok(Reply::Armed { buffer })
            }
            Request::Incoming { multifd_channels } => {
                self.progress.begin("receive RAM");
                self.receive_ram(multifd_channels).await?;
                Ok(Reply::Listening)
            }
            Request::Block => {
                shared::must_not_write(&self.shared).await?;
                if let Some(vm) = &self.vm {
                    neighbours::introduce(&self.node, vm).await;
                }
                if let Some(delivery) = &self.delivery {
                    delivery.block(&self.node).await?;
                }
                Ok(Reply::Blocked)
            }
            Request::Inject { frames } => {
                let delivery = self
                    .delivery
                    .as_mut()
                    .ok_or(MigrateError::OutOfStep { what: "Inject" })?;
                Ok(Reply::Injected {
                    frames: delivery.inject(&frames)?,
                })
            }
            Request::Commit => {
                self.progress.begin("run");
                tracing::info!("COMMIT: running the VM");
                let run = guest::run(&self.node, self.delivery.as_ref());
                let resumed = shared::run_fenced(&self.shared, run).await?;
                self.running = true;
                self.progress.begin("linger");
                Ok(Reply::Committed(resumed))
            }
            Request::Reconcile { redirected } => {
                let ledger = match &self.delivery {
                    Some(delivery) => delivery.ledger(redirected).await,
                    None => DestinationLedger::default(),
                };
                Ok(Reply::Ledger(Box::new(ledger)))
            }
            Request::Finish { summary } => {
                self.progress.begin("clean up");
                self.report.verdict = summary.verdict;
                self.report.ledger = summary.ledger.map(|ledger| *ledger);
                self.report.unproven = summary.unproven;
                self.clean_up().await;
                Ok(Reply::Finished {
                    left_behind: self.report.left_behind().map(|u| u.what.clone()).collect(),
                })
            }
            Request::Abort { reason } => {
                self.reason.get_or_insert(reason);
                self.refused |= self.stage <= Stage::Prepared;
                let (frames, more) = self.give_back().await;
                Ok(Reply::Aborted { frames, more })
            }
        }
    }

    async fn receive_ram(&mut self, multifd_channels: u8) -> Result<(), MigrateError> {
        let directory = relay_directory(self.id, Role::Destination);
        make_private(&directory).map_err(|source| MigrateError::Directory {
            path: directory.clone(),
            source,
        })?;
        let socket = directory.join("ram");
        self.undo
            .cleanup("directory of QEMU's socket", move || async move {
                std::fs::remove_dir_all(&directory)
                    .map_err(|e| format!("{}: {e}", directory.display()))
            });
        guest::listen(
            &self.node.qmp,
            format!("unix:{}", socket.display()),
            multifd_channels,
        )
        .await?;
        self.relay = Some(DestinationRelay::start(&socket));
        Ok(())
    }

    /// A RAM stream of this session has arrived; it goes to QEMU.
    async fn take_stream(&mut self, stream: Stream) {
        match (&self.relay, stream.kind) {
            (Some(relay), StreamKind::Ram) => relay.add(stream.index, stream.io).await,
            _ => tracing::warn!(kind = ?stream.kind, "a stream that nobody asked for is closed"),
        }
    }

    fn on_event(&mut self, event: Result<Event, QmpError>) {
        match event {
            Ok(event) => match event.migration_status() {
                Some(MigrationStatus::Completed) => {
                    self.loaded = true;
                    self.notify(&Notice::Loaded);
                }
                Some(MigrationStatus::Failed) => {
                    self.incoming_failed("QEMU could not load the VM (its log says why)")
                }
                _ => {}
            },
            Err(error) => {
                self.qemu_gone = true;
                self.incoming_failed(&format!(
                    "the destination's QEMU is gone: {}",
                    chain(&error)
                ));
            }
        }
    }

    fn incoming_failed(&mut self, reason: &str) {
        // After an abort QEMU's end is what we asked for; after COMMIT it is the VM's own affair.
        if self.stage >= Stage::Committed {
            return;
        }
        self.reason.get_or_insert_with(|| reason.to_owned());
        self.notify(&Notice::IncomingFailed {
            reason: reason.to_owned(),
        });
    }

    fn give_up(&mut self, reason: &str) {
        self.reason.get_or_insert_with(|| reason.to_owned());
        self.notify(&Notice::GivingUp {
            reason: reason.to_owned(),
        });
    }

    fn notify(&self, notice: &Notice) {
        if let Err(error) = self.server.notify(notice) {
            tracing::debug!(error = chain(&error), "a notice could not be sent");
        }
    }

    fn source_lost(&mut self, error: &ControlError) {
        if self.stage == Stage::Aborted {
            return;
        }
        let lost = format!("the session with the source ended: {}", chain(error));
        if self.stage >= Stage::Committed {
            tracing::warn!(lost, "the VM runs here; going on without the source");
            self.report.warnings.push(lost);
        } else {
            self.reason.get_or_insert(lost);
        }
    }

    /// Held packets, oldest first. The incoming QEMU is ended with the first batch; the tap's ring
    /// lives on behind a duplicate of its descriptor.
    async fn give_back(&mut self) -> (Vec<WireFrame>, bool) {
        if self.stage != Stage::Aborted {
            self.destroy_incoming().await;
        }
        let Some(held) = &self.held else {
            return (Vec::new(), false);
        };
        let frames = held.read_unread(RETURN_BATCH).unwrap_or_default();
        let more = frames.len() == RETURN_BATCH;
        let frames = frames
            .iter()
            .filter(|f| !is_bait(&f.frame))
            .map(|f| WireFrame([&f.vnet_header.0[..], &f.frame].concat()))
            .collect();
        (frames, more)
    }

    /// At most one copy of the VM ever runs: before COMMIT ours is destroyed. A QEMU that was not asked to
    /// receive anything yet is left as it was, for the next try.
    async fn destroy_incoming(&mut self) {
        if self.stage < Stage::Listening || self.stage >= Stage::Committed {
            return;
        }
        self.held = self.duplicate_tap();
        if let Some(delivery) = &self.delivery
            && let Err(error) = delivery.release().await
        {
            tracing::warn!(
                error = chain(&error),
                "held packets could not be released into the tap"
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

    fn duplicate_tap(&self) -> Option<TapQueues> {
        let pid = self.node.qemu_pid?;
        let tap = crate::discover::tap(pid, Some(&self.node.tap.name)).ok()?;
        TapQueues::duplicate_fds(pid, &tap.name, &tap.descriptors).ok()
    }

    async fn clean_up(&mut self) {
        self.report.shared_volumes = self.shared.report(self.stage >= Stage::Committed);
        if self.running
            && let Some(delivery) = &self.delivery
            && let Err(error) = delivery.keep().await
        {
            self.report.warnings.push(chain(&error));
        }
        if let Some(relay) = self.relay.take() {
            relay.shutdown().await;
        }
        let undo = std::mem::take(&mut self.undo);
        let undone = if self.running {
            undo.commit().run(deadline::UNDO).await
        } else {
            undo.unwind(deadline::UNDO).await
        };
        self.report.cleanup.extend(undone);
    }

    /// The session is over, one way or another.
    async fn close(mut self) -> End {
        if matches!(self.stage, Stage::Committed | Stage::Finished) && !self.running {
            self.clean_up().await;
            self.server.close().await;
            let reason = self.reason.unwrap_or_default();
            return End::Undecided { reason };
        }
        if matches!(self.stage, Stage::Committed | Stage::Finished) {
            if self.stage == Stage::Committed {
                self.outlive_source().await;
                self.clean_up().await;
            }
            self.server.close().await;
            return End::Migrated;
        }
        if self.stage != Stage::Aborted {
            self.destroy_incoming().await;
        }
        self.held = None;
        self.clean_up().await;
        self.server.close().await;
        let reason = self.reason.unwrap_or_else(|| "the source left".to_owned());
        if self.refused {
            End::Refused { reason }
        } else {
            End::GivenUp { reason }
        }
    }

    /// The source can't tell us any more when its last packet was redirected: deliver until none
    /// has come for a while.
    async fn outlive_source(&self) {
        let Some(delivery) = &self.delivery else {
            return;
        };
        let began = Instant::now();
        let mut last = (delivery.arrived_through_tunnel(), Instant::now());
        while last.1.elapsed() < ORPHAN_QUIET && began.elapsed() < ORPHAN_LIMIT {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let arrived = delivery.arrived_through_tunnel();
            if arrived != last.0 {
                last = (arrived, Instant::now());
            }
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
