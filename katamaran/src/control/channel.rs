//! What both ends of a control session share: the reader, heartbeats, the end of the session.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::clock::{Clock, ClockOffset, Moment};
use super::error::ControlError;
use super::fault::Fault;
use super::frame::{FrameError, FrameReader, encode};
use crate::deadline;
use crate::prompt_writer::PromptWriter;
use crate::stream::BoxStream;

/// Clock samples taken back to back when a session starts; later ones come with the heartbeats.
const FIRST_SAMPLES: u64 = 8;

/// Pings that may be unanswered before the oldest is forgotten.
const OPEN_PINGS: usize = 64;

/// The messages of a control session.
pub trait Protocol: Send + Sync + 'static {
    /// From source to destination.
    type Request: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Back, one for each request.
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// From destination to source, at any time.
    type Notice: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// When a session speaks and when it gives up.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two of our heartbeats.
    pub heartbeat: Duration,
    /// How long the peer may be silent.
    pub silence: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: deadline::HEARTBEAT_PERIOD,
            silence: deadline::PEER_SILENCE,
        }
    }
}

/// A message to send.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outgoing<'a, B> {
    Request {
        id: u64,
        body: &'a B,
    },
    Reply {
        id: u64,
        body: &'a B,
    },
    Fault {
        id: u64,
        fault: &'a Fault,
    },
    Notice(&'a B),
    Ping {
        number: u64,
    },
    Pong {
        number: u64,
        received_ns: u64,
        answered_ns: u64,
    },
    Refused(&'a Fault),
}

/// An [`Outgoing`] without a body.
pub(super) type Bare<'a> = Outgoing<'a, ()>;

/// A message as it arrives, its body not looked at yet.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Incoming {
    Request {
        id: u64,
        body: Value,
    },
    Reply {
        id: u64,
        body: Value,
    },
    Fault {
        id: u64,
        fault: Fault,
    },
    Notice(Value),
    Ping {
        number: u64,
    },
    Pong {
        number: u64,
        received_ns: u64,
        answered_ns: u64,
    },
    Refused(Fault),
}

/// A session that runs; ends when dropped.
pub(super) struct Session {
    core: Arc<Core>,
    _tasks: JoinSet<()>,
}

/// What the handles and tasks of a session share.
pub(super) struct Core {
    state: Mutex<State>,
    writer: PromptWriter<WriteHalf<BoxStream>>,
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    last_id: u64,
    pending: HashMap<u64, oneshot::Sender<Result<Value, Fault>>>,
    clock: Clock,
    last_ping: u64,
    pings: VecDeque<(u64, Moment)>,
    closing: bool,
    over: Option<ControlError>,
}

impl State {
    fn check(&self) -> Result<(), ControlError> {
        let why = match &self.over {
            Some(over) => over.clone(),
            None if self.closing => ControlError::ClosedHere,
            None => return Ok(()),
        };
        Err(ControlError::NotSent {
            source: Box::new(why),
        })
    }
}

impl Session {
    /// Starts the tasks. `take` gets the messages that only one role receives; its error ends the
    /// session. It is dropped when the session has ended.
    pub(super) fn start(
        io: BoxStream,
        timing: Timing,
        take: impl FnMut(&Core, Incoming) -> Result<(), ControlError> + Send + 'static,
    ) -> Self {
        let (read, write) = tokio::io::split(io);
        let core = Arc::new(Core {
            state: Mutex::default(),
            writer: PromptWriter::new(write),
            ended: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(receive(
            Arc::clone(&core),
            FrameReader::new(read),
            timing.silence,
            take,
        ));
        tasks.spawn(heartbeat(Arc::clone(&core), timing.heartbeat));
        tasks.spawn(write_backlog(Arc::clone(&core)));
        Self {
            core,
            _tasks: tasks,
        }
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Sends what is still to be sent, then waits until the peer has closed its end too.
    pub(super) async fn close(&self) {
        self.core.lock().closing = true;
        self.core.writer.finish();
        if timeout(deadline::CONTROL_CLOSE, self.core.ended.cancelled())
            .await
            .is_err()
        {
            tracing::debug!("peer does not close the control session");
        }
        self.core.end(ControlError::ClosedHere);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.core.end(ControlError::ClosedHere);
    }
}

/// A registered request; forgets it when dropped.
pub(super) struct Call<'a> {
    core: &'a Core,
    pub(super) id: u64,
    pub(super) reply: oneshot::Receiver<Result<Value, Fault>>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.core.lock().pending.remove(&self.id);
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request, unless the session is over.
    pub(super) fn register(&self) -> Result<Call<'_>, ControlError> {
        let mut state = self.lock();
        state.check()?;
        state.last_id += 1;
        let id = state.last_id;
        let (sender, reply) = oneshot::channel();
        state.pending.insert(id, sender);
        Ok(Call {
            core: self,
            id,
            reply,
        })
    }

    /// # Errors
    /// [`ControlError::NotSent`] when the session is over.
    pub(super) fn check(&self) -> Result<(), ControlError> {
        self.lock().check()
    }

    /// Completes a request.
    pub(super) fn complete(
        &self,
        id: u64,
        result: Result<Value, Fault>,
    ) -> Result<(), ControlError> {
        let mut state = self.lock();
        if !(1..=state.last_id).contains(&id) {
            return Err(garbled(FrameError::StrayReply { id }));
        }
        let waiter = state.pending.remove(&id);
        drop(state);
        if waiter.is_none_or(|waiter| waiter.send(result).is_err()) {
            tracing::debug!(id, "reply that nobody waits for");
        }
        Ok(())
    }

    /// Writes a frame at once; a failure ends the session, unless it is being closed already.
    pub(super) fn send(&self, frame: &[u8]) -> Result<(), ControlError> {
        if let Err(source) = self.writer.send(frame) {
            if self.lock().closing {
                return Err(ControlError::ClosedHere);
            }
            self.end(broken(source));
            return Err(self.over());
        }
        Ok(())
    }

    /// Ends the session for every waiter. The first reason stays.
    pub(super) fn end(&self, why: ControlError) {
        let mut state = self.lock();
        if state.over.is_none() {
            tracing::debug!(%why, "control session over");
            state.over = Some(why);
        }
        state.pending.clear();
        drop(state);
        self.writer.close();
        self.ended.cancel();
    }

    /// Why the session is over.
    pub(super) fn over(&self) -> ControlError {
        self.lock().over.clone().unwrap_or(ControlError::ClosedHere)
    }

    /// Waits for the end of the session.
    pub(super) async fn ended(&self) -> ControlError {
        self.ended.cancelled().await;
        self.over()
    }

    pub(super) fn clock(&self) -> Option<ClockOffset> {
        self.lock().clock.best()
    }

    fn ping(&self) -> Result<(), ControlError> {
        let mut state = self.lock();
        state.last_ping += 1;
        let number = state.last_ping;
        let frame = bare_frame(&Bare::Ping { number })?;
        if state.pings.len() == OPEN_PINGS {
            state.pings.pop_front();
        }
        // Read last, so that the sample holds no work of ours.
        state.pings.push_back((number, Moment::now()));
        drop(state);
        self.send(&frame)
    }

    /// Handles what both roles receive, and gives back the rest.
    fn take(&self, message: Incoming, at: Moment) -> Result<Option<Incoming>, ControlError> {
        match message {
            Incoming::Ping { number } => {
                let received_ns = at.real_ns();
                let answered_ns = Moment::now().real_ns().max(received_ns);
                let frame = bare_frame(&Bare::Pong {
                    number,
                    received_ns,
                    answered_ns,
                })?;
                // While we close, the peer's last messages still matter.
                match self.send(&frame) {
                    Ok(()) | Err(ControlError::ClosedHere) => Ok(None),
                    Err(over) => Err(over),
                }
            }
            Incoming::Pong {
                number,
                received_ns,
                answered_ns,
            } => {
                let mut state = self.lock();
                while state
                    .pings
                    .front()
                    .is_some_and(|(earlier, _)| *earlier < number)
                {
                    state.pings.pop_front();
                }
                if state.pings.front().is_some_and(|(open, _)| *open == number)
                    && let Some((_, sent)) = state.pings.pop_front()
                {
                    state.clock.sample(sent, received_ns, answered_ns, at);
                    let more = state.clock.taken() < FIRST_SAMPLES && !state.closing;
                    drop(state);
                    if more {
                        self.ping()?;
                    }
                }
                Ok(None)
            }
            other => Ok(Some(other)),
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("over", &self.lock().over)
            .finish_non_exhaustive()
    }
}

/// A peer whose process ended may leave a reset instead of an orderly end.
fn broken(source: io::Error) -> ControlError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Closed,
        _ => ControlError::Broken {
            source: Arc::new(source),
        },
    }
}

pub(super) fn garbled(source: FrameError) -> ControlError {
    match source {
        FrameError::Read { source } => broken(source),
        FrameError::Truncated { .. } => ControlError::Closed,
        other => ControlError::Garbled {
            source: Arc::new(other),
        },
    }
}

pub(super) fn frame<B: Serialize>(message: &Outgoing<'_, B>) -> Result<Vec<u8>, ControlError> {
    encode(message).map_err(|source| ControlError::Unsendable {
        source: Arc::new(source),
    })
}

pub(super) fn bare_frame(message: &Bare<'_>) -> Result<Vec<u8>, ControlError> {
    frame(message)
}

async fn receive(
    core: Arc<Core>,
    mut frames: FrameReader<ReadHalf<BoxStream>>,
    silence: Duration,
    mut take: impl FnMut(&Core, Incoming) -> Result<(), ControlError>,
) {
    let why = loop {
        let next = timeout(silence, frames.next());
        let body = match core.ended.run_until_cancelled(next).await {
            Some(Ok(Ok(Some(body)))) => body,
            Some(Ok(Ok(None))) => break ControlError::Closed,
            Some(Ok(Err(error))) => break garbled(error),
            Some(Err(_elapsed)) => break ControlError::PeerSilent { limit: silence },
            None => return,
        };
        let at = Moment::now();
        let taken = serde_json::from_slice(&body)
            .map_err(|source| garbled(FrameError::NotAMessage { source }))
            .and_then(|message| core.take(message, at))
            .and_then(|rest| rest.map_or(Ok(()), |message| take(&core, message)));
        if let Err(why) = taken {
            break why;
        }
    };
    core.end(why);
}

async fn heartbeat(core: Arc<Core>, period: Duration) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if core.ping().is_err() {
            return;
        }
    }
}

async fn write_backlog(core: Arc<Core>) {
    if let Err(source) = core.writer.drain().await {
        core.end(broken(source));
    }
}
