//! The destination's end: each stream that arrives goes on to the incoming QEMU.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::connector::connect;
use super::error::RelayError;
use super::governor::Governor;
use super::pump;
use super::splice;
use super::status::{OpenStream, RelayStatus};
use super::tasks::Tasks;
use crate::deadline;
use crate::stream::{BoxStream, into_tcp};

/// Streams that may wait to be taken up.
const QUEUE: usize = 64;

/// What streams are full of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// RAM: little of it may be under way when the VM stops.
    Ram,
    /// The data of drives: as much of it as there can be.
    Drives,
}

/// Relays the streams that arrive from the source.
#[must_use = "a relay ends when it is dropped"]
pub struct DestinationRelay {
    streams: mpsc::Sender<Arrived>,
    status: RelayStatus,
    tasks: Tasks,
}

/// A stream, its number, and its mark as open.
type Arrived = (u32, BoxStream, OpenStream);

impl DestinationRelay {
    /// Connects each stream that [`DestinationRelay::add`] brings to the unix socket `incoming`,
    /// where QEMU listens.
    pub fn start(incoming: &Path, carries: Carries) -> Self {
        let (streams, arrivals) = mpsc::channel(QUEUE);
        let status = RelayStatus::new();
        let mut tasks = Tasks::default();
        tasks.spawn(serve(
            incoming.to_owned(),
            carries,
            arrivals,
            status.clone(),
        ));
        Self {
            streams,
            status,
            tasks,
        }
    }

    /// Relays stream number `stream`. Streams may come in any order: each waits for those before
    /// it, so that QEMU sees them in the order in which the source's QEMU opened them.
    ///
    /// # Cancel safety
    /// Dropping the future before it is done may drop the stream.
    pub async fn add(&self, stream: u32, io: BoxStream) {
        let arrived = (stream, io, self.status.open());
        if self.streams.send(arrived).await.is_err() {
            tracing::debug!(stream, "migration stream for a relay that has ended");
        }
    }

    /// Watches the relay.
    #[must_use]
    pub fn status(&self) -> &RelayStatus {
        &self.status
    }

    /// Cuts what is open and waits for it.
    pub async fn shutdown(self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for DestinationRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestinationRelay")
            .field("counters", &self.status.counters())
            .finish_non_exhaustive()
    }
}

/// Relays until dropped; the streams end with it.
async fn serve(
    incoming: PathBuf,
    carries: Carries,
    mut arrivals: mpsc::Receiver<Arrived>,
    status: RelayStatus,
) {
    let mut running = JoinSet::new();
    let mut waiting: BTreeMap<u32, (BoxStream, OpenStream)> = BTreeMap::new();
    let mut next = 0;
    let mut patience = Instant::now();
    loop {
        let out_of_order = waiting.first_key_value().map(|(stream, _)| *stream);
        tokio::select! {
            arrived = arrivals.recv() => match arrived {
                None => break,
                Some((stream, ..)) if stream < next || waiting.contains_key(&stream) => {
                    status.fail(RelayError::Twice { stream });
                }
                Some((stream, io, open)) => {
                    if waiting.is_empty() {
                        patience = Instant::now() + deadline::RELAY_ORDER;
                    }
                    waiting.insert(stream, (io, open));
                }
            },
            () = sleep_until(patience), if out_of_order.is_some() => {
                if let Some(stream) = out_of_order {
                    let within = deadline::RELAY_ORDER;
                    status.fail(RelayError::Order { stream, missing: next, within });
                }
                waiting.clear();
            }
            Some(_ended) = running.join_next() => {}
        }
        while let Some((io, open)) = waiting.remove(&next) {
            let stream = next;
            next += 1;
            patience = Instant::now() + deadline::RELAY_ORDER;
            let qemu = match connect(stream, UnixStream::connect(&incoming)).await {
                Ok(qemu) => qemu,
                Err(error) => {
                    status.fail(error);
                    continue;
                }
            };
            tracing::debug!(stream, "migration stream connected to QEMU");
            let status = status.clone();
            running.spawn(async move {
                let _open = open;
                if let Err(error) = join(carries, stream, io, qemu, &status).await {
                    status.fail(error);
                }
            });
        }
    }
    while running.join_next().await.is_some() {}
}

async fn join(
    carries: Carries,
    stream: u32,
    io: BoxStream,
    qemu: UnixStream,
    status: &RelayStatus,
) -> Result<(), RelayError> {
    let io = match carries {
        Carries::Ram => io,
        Carries::Drives => match into_tcp(io) {
            Ok(tcp) => return splice::join(stream, tcp, qemu, status).await,
            Err(other) => other,
        },
    };
    pump::join(stream, io, qemu, &Governor::default(), status).await
}
