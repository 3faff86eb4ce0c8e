//! One session with a source: requests in, replies out, one at a time; and what QEMU, the
//! relay or a signal have to say meanwhile.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::CommonConfig;
use crate::conntrack::Existing;
use crate::control::{
    ControlConnection, ControlError, Fault, FaultCode, RequestId, Requests, Server, Stream,
    StreamKind, Timing,
};
use crate::journal::Record;
use crate::migrate::conntrack::wire::{ConntrackAnswer, ConntrackBatch};
use crate::migrate::diary::Diary;
use crate::migrate::error::{MigrateError, chain};
use crate::migrate::ledger::DestinationLedger;
use crate::migrate::message::{Arm, Buffer, MigrationProtocol, Reply, Request, VmDescription};
use crate::migrate::neighbours::Neighbours;
use crate::migrate::node::{Node, make_private_for_now, relay_directory};
use crate::migrate::progress::Progress;
use crate::migrate::report::Report;
use crate::migrate::rollback::UndoStack;
use crate::migrate::shared::{self, Held};
use crate::migrate::storage::drive::Drive;
use crate::relay::{Carries, DestinationRelay};
use crate::session_id::SessionId;

use super::conntrack::Carried;
use super::delivery::Delivery;
use super::ending::End;
use super::guest;
use super::look;
use super::stage::{self, Facts, Stage};
use super::storage::Exported;
use crate::role::Role;

/// A source that asked for an abort comes back for the rest within this time.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);
/// From COMMIT's answer to our own announcement. QEMU's first rounds go out as the VM starts; each
/// round also wakes the guest, which has the held packets to answer first.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(300);
/// Between two readings of the tap while the VM runs here: what the account of it learns from an empty ring.
const TAP_LOOK: Duration = Duration::from_millis(20);

pub(super) struct Session<'a> {
    pub(super) id: SessionId,
    source: SocketAddr,
    pub(super) node: Node,
    pub(super) server: Server<MigrationProtocol>,
    pub(super) relay: Option<DestinationRelay>,
    /// How this node was started.
    config: &'a CommonConfig,
    /// Where sockets of this session are, once there is one.
    directory: Option<PathBuf>,
    /// What the source's drives are mirrored to.
    drives: Vec<Drive>,
    pub(super) exported: Option<Exported>,
    progress: &'a mut Progress,
    pub(super) report: &'a mut Report,
    pub(super) undo: UndoStack,
    pub(super) diary: Diary,
    pub(super) stage: Stage,
    pub(super) vm: Option<VmDescription>,
    /// One for each of the VM's network cards, in the source's order.
    pub(super) deliveries: Vec<Delivery>,
    pub(super) shared: Held,
    /// This node's table of connections, once the source has told of one.
    connections: Option<Carried>,
    pub(super) loaded: bool,
    /// The VM runs here.
    pub(super) running: bool,
    pub(super) qemu_gone: bool,
    pub(super) reason: Option<String>,
    /// When the switches are told where the VM is.
    pub(super) announce_at: Option<tokio::time::Instant>,
    /// We found ourselves that it can't work, before anything was changed.
    pub(super) refused: bool,
}

/// Serves one source to the end, and undoes everything that was set up.
pub(crate) async fn serve(
    node: Node,
    config: &CommonConfig,
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
        source: connection.peer,
        node,
        server,
        relay: None,
        config,
        directory: None,
        drives: Vec::new(),
        exported: None,
        progress,
        report,
        undo: UndoStack::default(),
        diary: Diary::default(),
        stage: Stage::Connected,
        vm: None,
        deliveries: Vec::new(),
        shared: Held::default(),
        connections: None,
        loaded: false,
        running: false,
        qemu_gone: false,
        reason: None,
        announce_at: None,
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
        let mut look_at_tap = interval(TAP_LOOK);
        look_at_tap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stage != Stage::Finished {
            let (give_up_at, announce_at) = (patience, self.announce_at);
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
                () = sleep_until(announce_at), if announce_at.is_some() => self.announce().await,
                () = sleep_until(give_up_at), if give_up_at.is_some() => return,
                _ = look_at_tap.tick(), if self.stage == Stage::Committed => {
                    self.deliveries.iter().for_each(Delivery::observe);
                }
            }
        }
    }

    async fn answer(&mut self, id: RequestId, request: Request) -> Result<(), ControlError> {
        let facts = Facts {
            loaded: self.loaded,
            mirrored: !self.drives.is_empty(),
            exported: self.exported.is_some(),
            gone: self.node.qmp.is_closed(),
        };
        let next = match stage::next(self.stage, &request, facts) {
            Ok(next) => next,
            Err(fault) => return self.server.reply(id, Err(fault)),
        };
        tracing::debug!(from = %self.stage, to = %next, "stage");
        // COMMIT takes effect even if the reply can't be delivered.
        if matches!(request, Request::Commit) {
            if let Err(error) = self.diary.note(&Record::CommitReceived) {
                let fault = Fault::new(FaultCode::Failed, chain(&error));
                return self.server.reply(id, Err(fault));
            }
            self.stage = next;
        }
        let announce = matches!(request, Request::Commit);
        let result = self.act(request).await;
        if result.is_ok() {
            self.stage = next;
        }
        if announce && result.is_ok() {
            self.announce_at = Some(tokio::time::Instant::now() + ANNOUNCE_AFTER);
        }
        let reply = result.map_err(|error| {
            tracing::error!(error = chain(&error), "refused");
            self.reason.get_or_insert_with(|| chain(&error));
            self.refused |= next <= Stage::Prepared;
            Fault::new(FaultCode::Failed, chain(&error))
        });
        self.server.reply(id, reply)
    }

    pub(super) async fn announce(&mut self) {
        self.announce_at = None;
        if let Err(error) = guest::announce(&self.node.qmp).await {
            tracing::warn!(error = chain(&error), "the VM was not announced");
            self.report.warnings.push(chain(&error));
        }
    }

    async fn act(&mut self, request: Request) -> Result<Reply, MigrateError> {
        match request {
            Request::Hello { versions, software } => look::hello(&versions, &software),
            Request::Prepare(vm) => {
                let (drives, reply) = look::prepare(&self.node, self.config, &vm).await?;
                self.diary =
                    Diary::of_destination(&self.node, self.id, self.config, self.source, &vm)?;
                self.progress.keep(self.diary.clone());
                self.drives = drives;
                self.vm = Some(vm);
                Ok(reply)
            }
            Request::Attach(offer) => {
                self.diary.note(&Record::Attached)?;
                let (answer, held) =
                    shared::attach_destination(&self.node, self.id, offer, &mut self.undo).await?;
                self.shared = held;
                Ok(Reply::Attached(answer))
            }
            Request::Arm(arm) => {
                self.progress.begin("arm");
                self.report.tunnel = Some(arm.tunnel);
                let buffer = self.arm(&arm).await?;
                self.report.buffer = Some(buffer);
                Ok(Reply::Armed { buffer })
            }
            Request::Export => {
                self.progress.begin("receive disks");
                let directory = self.directory()?;
                let exported =
                    Exported::open(&self.node, &directory, &self.drives, &mut self.undo).await?;
                self.exported = Some(exported);
                Ok(Reply::Exported)
            }
            Request::Checksums {
                drive,
                first_block,
                blocks,
            } => {
                let exported = self
                    .exported
                    .as_mut()
                    .ok_or(MigrateError::OutOfStep { what: "Checksums" })?;
                let checksums = exported.checksums(&drive, first_block, blocks).await?;
                Ok(Reply::Checksums(checksums))
            }
            Request::CloseExport => {
                if let Some(exported) = &mut self.exported {
                    exported.close().await?;
                }
                self.exported = None;
                Ok(Reply::ExportClosed)
            }
            Request::Incoming { multifd_channels } => {
                self.progress.begin("receive RAM");
                self.receive_ram(multifd_channels).await?;
                Ok(Reply::Listening)
            }
            Request::Conntrack(batch) => {
                Ok(Reply::Conntrack(self.take_in_connections(batch).await))
            }
            Request::Block => {
                self.diary.note(&Record::Blocked)?;
                shared::must_not_write(&self.shared).await?;
                self.introduce().await;
                // An incoming QEMU ends by itself when its stream does, and the ring with it.
                self.duplicate_taps();
                for delivery in &self.deliveries {
                    delivery.block().await?;
                }
                Ok(Reply::Blocked)
            }
            Request::Inject { frames, nic } => {
                let delivery = self
                    .deliveries
                    .get_mut(nic)
                    .ok_or(MigrateError::OutOfStep { what: "Inject" })?;
                Ok(Reply::Injected {
                    frames: delivery.inject(&frames)?,
                })
            }
            Request::Commit => {
                self.progress.begin("run");
                tracing::info!("COMMIT: running the VM");
                self.let_go_of_rings();
                let run = guest::run(&self.node, &self.deliveries);
                let resumed = shared::run_fenced(&self.shared, run).await?;
                self.running = true;
                self.report.note_held(resumed.held);
                self.diary.mention(&Record::Running);
                // The pause may have been long, and what was held keeps the VM busy.
                self.introduce().await;
                self.progress.begin("linger");
                Ok(Reply::Committed(resumed))
            }
            Request::Reconcile { redirected, nic } => {
                let ledger = match self.deliveries.get(nic) {
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
            Request::Abort { reason, nic } => {
                self.reason.get_or_insert(reason);
                self.refused |= self.stage <= Stage::Prepared;
                // Before the ring is read, so that what is counted can be in it.
                let delivery = self.deliveries.get(nic);
                let arrived = delivery.and_then(Delivery::arrived_through_tunnel);
                let (frames, more) = self.give_back(nic).await;
                Ok(Reply::Aborted {
                    frames,
                    more,
                    arrived,
                })
            }
        }
    }

    /// The session's directory, which is made when it is needed first.
    fn directory(&mut self) -> Result<PathBuf, MigrateError> {
        if let Some(directory) = &self.directory {
            return Ok(directory.clone());
        }
        let directory = relay_directory(self.id, Role::Destination);
        make_private_for_now(
            directory.clone(),
            "directory of QEMU's sockets",
            &mut self.undo,
        )?;
        self.directory = Some(directory.clone());
        Ok(directory)
    }

    async fn take_in_connections(&mut self, batch: ConntrackBatch) -> ConntrackAnswer {
        let carried = match &self.connections {
            Some(carried) => carried,
            None => match Carried::open(&self.node.netns, &mut self.undo) {
                Ok(carried) => self.connections.insert(carried),
                Err(reason) => return ConntrackAnswer::Unavailable(reason),
            },
        };
        // Once the VM runs here, what passes tells this kernel more than the source knows.
        let existing = match self.stage < Stage::Committed {
            true => Existing::Update,
            false => Existing::Keep,
        };
        let vm = self.vm.as_ref().map(VmDescription::addresses);
        carried
            .take_in(batch, vm.unwrap_or_default(), existing)
            .await
    }

    /// Sets the data path of each network card up. Returns what holds packets.
    async fn arm(&mut self, arm: &Arm) -> Result<Buffer, MigrateError> {
        const OUT_OF_STEP: MigrateError = MigrateError::OutOfStep { what: "Arm" };
        let vm = self.vm.as_ref().ok_or(OUT_OF_STEP)?;
        for (number, theirs) in vm.nics().enumerate() {
            let nic = self.node.nic_for(theirs).ok_or(OUT_OF_STEP)?;
            let before = nic.tap.txqlen;
            self.diary.note(&Record::Ring {
                before,
                nic: number,
            })?;
            let session = self.id.of_nic(number);
            let delivery = Delivery::arm(nic, session, theirs, arm, &mut self.undo).await?;
            if let Some(cost) = delivery.cost_to_others() {
                tracing::warn!("{cost}");
                self.report.warnings.push(cost);
            }
            self.deliveries.push(delivery);
        }
        let first = self.deliveries.first().ok_or(OUT_OF_STEP)?;
        Ok(first.buffer)
    }

    /// The VM can't answer this node's questions for its Ethernet addresses yet.
    async fn introduce(&self) {
        let Some(vm) = &self.vm else { return };
        for (delivery, nic) in self.deliveries.iter().zip(vm.nics()) {
            let neighbours = Neighbours::of(&delivery.nic, &nic.addresses, nic.mac);
            neighbours.introduce().await;
        }
    }

    async fn receive_ram(&mut self, multifd_channels: u8) -> Result<(), MigrateError> {
        let socket = self.directory()?.join("ram");
        self.diary.note(&Record::Listening)?;
        guest::listen(
            &self.node.qmp,
            format!("unix:{}", socket.display()),
            multifd_channels,
        )
        .await?;
        self.relay = Some(DestinationRelay::start(&socket, Carries::Ram));
        Ok(())
    }

    /// A stream of this session has arrived; it goes to QEMU.
    async fn take_stream(&mut self, stream: Stream) {
        match (&self.relay, &self.exported, stream.kind) {
            (Some(relay), _, StreamKind::Ram) => relay.add(stream.index, stream.io).await,
            (_, Some(exported), StreamKind::Nbd) => exported.add(stream).await,
            _ => tracing::warn!(kind = ?stream.kind, "a stream that nobody asked for is closed"),
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
