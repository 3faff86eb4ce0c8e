//! The destination's one port.
//!
//! Each connection has to say who it is before anything else happens: its handshake, if any, and
//! its preamble run in a task of its own, under a deadline, and at most [`HALF_OPEN`] at a time.
//! One more pushes the oldest out: a peer of ours sends its preamble at once and is never the
//! oldest for long, so strangers that connect and wait push out one another.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::channel::{Bare, bare_frame};
use super::dial::Upgrade;
use super::fault::{Fault, FaultCode};
use super::preamble::{Preamble, PreambleError, StreamKind};
use crate::deadline;
use crate::session_id::SessionId;
use crate::stream::BoxStream;

/// Connections that have not said yet who they are.
pub(super) const HALF_OPEN: usize = 64;

/// Streams of a session that may wait to be taken.
const WAITING_STREAMS: usize = 64;

/// Control connections that may wait to be taken.
const WAITING_SESSIONS: usize = 8;

/// Listens until dropped. Sessions that were handed out live on by themselves, but no further
/// streams of theirs arrive.
#[derive(Debug)]
#[must_use = "the port closes when it is dropped"]
pub struct Listener {
    arrivals: mpsc::Receiver<Arrival>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

/// A session that begins: its control connection and the way for its streams.
///
/// As long as this lives, the session is known and its streams are taken; a second control
/// connection for it is refused.
pub struct ControlConnection {
    /// The session.
    pub session: SessionId,
    /// Where the source is.
    pub peer: SocketAddr,
    /// The control connection; taken by whoever starts the session on it.
    pub io: Option<BoxStream>,
    streams: mpsc::Receiver<Stream>,
    known: Known,
}

/// What arrives at the port and belongs to no session yet.
#[derive(Debug)]
pub enum Arrival {
    /// A session begins.
    Session(ControlConnection),
    /// Somebody asks, and begins nothing.
    Look(Look),
}

/// The connection of somebody who only asks.
pub struct Look {
    /// Where they are.
    pub peer: SocketAddr,
    /// The bytes after the preamble.
    pub io: BoxStream,
}

/// A connection of a known session that is not its control connection.
pub struct Stream {
    /// What it is for.
    pub kind: StreamKind,
    /// Its number among those of its kind.
    pub index: u32,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The bytes after the preamble.
    pub io: BoxStream,
}

/// The sessions that are known, and what takes their streams.
type Table = Arc<Mutex<HashMap<SessionId, mpsc::Sender<Stream>>>>;

/// A session's place in the table; gives it up when dropped.
struct Known {
    session: SessionId,
    table: Table,
}

impl Drop for Known {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.session);
    }
}

impl Listener {
    /// Serves `tcp`, for at most `most_sessions` sessions at a time.
    ///
    /// # Errors
    /// The socket has no local address.
    pub fn start(tcp: TcpListener, upgrade: Upgrade, most_sessions: usize) -> io::Result<Self> {
        let address = tcp.local_addr()?;
        let (sender, arrivals) = mpsc::channel(WAITING_SESSIONS);
        let door = Door {
            upgrade,
            table: Table::default(),
            most_sessions,
            arrivals: sender,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(tcp, door));
        Ok(Self {
            arrivals,
            address,
            tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next session that begins, or the next that only asks. Pends for ever where nobody comes.
    ///
    /// # Cancel safety
    /// Cancel safe: nobody is lost.
    pub async fn next(&mut self) -> Arrival {
        match self.arrivals.recv().await {
            Some(arrival) => arrival,
            // The task that serves the port ends only with this value.
            None => std::future::pending().await,
        }
    }

    /// Closes the port.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

impl ControlConnection {
    /// The next stream of this session. Pends for ever where none comes.
    ///
    /// # Cancel safety
    /// Cancel safe: no stream is lost.
    pub async fn next_stream(&mut self) -> Stream {
        match self.streams.recv().await {
            Some(stream) => stream,
            None => std::future::pending().await,
        }
    }
}

impl fmt::Debug for ControlConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlConnection")
            .field("session", &self.known.session)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("kind", &self.kind)
            .field("index", &self.index)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Who is let in.
struct Door {
    upgrade: Upgrade,
    table: Table,
    most_sessions: usize,
    arrivals: mpsc::Sender<Arrival>,
}

/// A connection did not become one of ours.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("secure the connection")]
    Upgrade(#[source] io::Error),
    #[error("no handshake within {:?}", deadline::PREAMBLE)]
    Deadline,
    #[error(transparent)]
    Preamble(PreambleError),
}

type Introduction = (SocketAddr, Result<(Preamble, BoxStream), Rejected>);

async fn serve(tcp: TcpListener, door: Door) {
    let mut half_open: JoinSet<Introduction> = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    let mut refusals = JoinSet::new();
    loop {
        tokio::select! {
            accepted = tcp.accept() => match accepted {
                Ok((io, peer)) => {
                    by_age.retain(|task| !task.is_finished());
                    if by_age.len() >= HALF_OPEN
                        && let Some(oldest) = by_age.pop_front()
                    {
                        oldest.abort();
                    }
                    let upgrade = Arc::clone(&door.upgrade);
                    by_age.push_back(half_open.spawn(async move {
                        (peer, introduce(io, upgrade).await)
                    }));
                }
                Err(error) => {
                    // Out of descriptors, or a connection that is gone already. Either passes.
                    tracing::warn!(%error, "accept a connection");
                    sleep(deadline::ACCEPT_RETRY).await;
                }
            },
            Some(introduced) = half_open.join_next() => match introduced {
                Ok((peer, Ok((preamble, io)))) => {
                    if let Err((io, fault)) = door.admit(preamble, io, peer) {
                        tracing::warn!(%peer, session = %preamble.session, %fault, "refused");
                        let listens =
                            matches!(preamble.kind, StreamKind::Control | StreamKind::Look);
                        if listens && refusals.len() < HALF_OPEN {
                            refusals.spawn(refuse(io, fault));
                        }
                    }
                }
                Ok((peer, Err(error))) => tracing::debug!(%peer, %error, "not one of ours"),
                Err(_pushed_out) => tracing::debug!("half-open connection pushed out"),
            },
            Some(_told) = refusals.join_next() => {}
        }
    }
}

async fn introduce(tcp: TcpStream, upgrade: Upgrade) -> Result<(Preamble, BoxStream), Rejected> {
    let introduction = async {
        tcp.set_nodelay(true).map_err(Rejected::Upgrade)?;
        let mut io = upgrade(tcp).await.map_err(Rejected::Upgrade)?;
        let preamble = Preamble::read(&mut io, deadline::PREAMBLE)
            .await
            .map_err(Rejected::Preamble)?;
        Ok((preamble, io))
    };
    match timeout(deadline::PREAMBLE, introduction).await {
        Ok(introduced) => introduced,
        Err(_elapsed) => Err(Rejected::Deadline),
    }
}

impl Door {
    /// Hands the connection to its session, or gives it back with the reason.
    fn admit(
        &self,
        preamble: Preamble,
        io: BoxStream,
        peer: SocketAddr,
    ) -> Result<(), (BoxStream, Fault)> {
        let Preamble {
            kind,
            session,
            index,
        } = preamble;
        let busy = |message: &str| Fault::new(FaultCode::Busy, message);
        let mut table = lock(&self.table);
        if kind == StreamKind::Look {
            // A migration has other things to do than to answer questions.
            if !table.is_empty() {
                return Err((
                    io,
                    busy("another migration to this destination is under way"),
                ));
            }
            return match self.arrivals.try_reserve() {
                Ok(place) => {
                    place.send(Arrival::Look(Look { peer, io }));
                    Ok(())
                }
                Err(_full) => Err((io, busy("too many ask at once"))),
            };
        }
        if kind != StreamKind::Control {
            let Some(streams) = table.get(&session) else {
                let fault = Fault::new(FaultCode::WrongState, "no such session");
                return Err((io, fault));
            };
            return match streams.try_send(Stream {
                kind,
                index,
                peer,
                io,
            }) {
                Ok(()) => Ok(()),
                Err(full) => Err((full.into_inner().io, busy("too many streams wait"))),
            };
        }
        if table.contains_key(&session) {
            return Err((io, busy("this session has its control connection already")));
        }
        if table.len() >= self.most_sessions {
            return Err((
                io,
                busy("another migration to this destination is under way"),
            ));
        }
        let Ok(place) = self.arrivals.try_reserve() else {
            return Err((io, busy("too many sessions wait")));
        };
        let (sender, streams) = mpsc::channel(WAITING_STREAMS);
        table.insert(session, sender);
        let known = Known {
            session,
            table: Arc::clone(&self.table),
        };
        place.send(Arrival::Session(ControlConnection {
            session,
            peer,
            io: Some(io),
            streams,
            known,
        }));
        Ok(())
    }
}

/// Tells the source why, as far as it listens, and closes when it has closed its end: a close
/// with its first messages unread would reset the connection before it has read the reason.
async fn refuse(mut io: BoxStream, fault: Fault) {
    let tell = async {
        let frame = bare_frame(&Bare::Refused(&fault)).ok()?;
        io.write_all(&frame).await.ok()?;
        io.shutdown().await.ok()?;
        let mut unread = [0; 1024];
        while io.read(&mut unread).await.ok()? > 0 {}
        Some(())
    };
    if timeout(deadline::REFUSAL, tell).await.is_err() {
        tracing::debug!("refused peer does not close its end");
    }
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<SessionId, mpsc::Sender<Stream>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
