//! The connection: greeting, calls, the reader.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::command::{Command, GetFd, QmpCapabilities, QomGet};
use super::error::{CloseReason, QmpError};
use super::event::{Event, EventName, EventStream};
use super::line::{LineReader, start_of};
use super::socket::MonitorWriter;
use super::wire::{ErrorBody, Execute, Greeting, Message, QemuVersion};
use crate::deadline;
use crate::prompt_writer::PromptWriter;

/// A connection to QEMU's monitor. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Qmp {
    connection: Arc<Connection>,
}

struct Connection {
    shared: Arc<Shared>,
    version: QemuVersion,
    peer_pid: Option<u32>,
    /// The reader and the writer of backlogs; dropping the set ends them.
    _tasks: JoinSet<()>,
}

/// What callers, streams and the reader share.
pub(super) struct Shared {
    state: Mutex<State>,
    writer: PromptWriter<MonitorWriter>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    pending: HashMap<u64, oneshot::Sender<Result<Value, ErrorBody>>>,
    subscribers: Vec<mpsc::UnboundedSender<Event>>,
    closed: Option<Arc<CloseReason>>,
}

impl Qmp {
    /// Connects to the monitor socket at `path` and negotiates, within
    /// [`deadline::QMP_CONNECT`].
    ///
    /// # Errors
    /// The socket cannot be connected, or what listens there is no free QMP monitor.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let until = Instant::now() + deadline::QMP_CONNECT;
        let stream = match timeout_at(until, UnixStream::connect(path)).await {
            Ok(connected) => connected.map_err(|source| QmpError::Connect {
                path: path.to_owned(),
                source,
            })?,
            Err(_elapsed) => {
                let within = deadline::QMP_CONNECT;
                return Err(QmpError::ConnectDeadline {
                    path: path.to_owned(),
                    within,
                });
            }
        };
        Self::negotiate(stream, until).await
    }

    /// Negotiates on a connected socket, within [`deadline::QMP_CONNECT`].
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub async fn over(stream: UnixStream) -> Result<Self, QmpError> {
        Self::negotiate(stream, Instant::now() + deadline::QMP_CONNECT).await
    }

    async fn negotiate(stream: UnixStream, until: Instant) -> Result<Self, QmpError> {
        let peer_pid = stream
            .peer_cred()
            .ok()
            .and_then(|credentials| credentials.pid())
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid != 0);
        let (read, write) = stream.into_split();
        let mut lines = LineReader::new(read);
        let version = greeting(&mut lines, until).await?;

        let shared = Arc::new(Shared {
            state: Mutex::default(),
            writer: PromptWriter::new(MonitorWriter::new(write)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(read_messages(lines, Arc::clone(&shared)));
        tasks.spawn(write_backlog(Arc::clone(&shared)));
        let qmp = Self {
            connection: Arc::new(Connection {
                shared,
                version,
                peer_pid,
                _tasks: tasks,
            }),
        };
        qmp.execute_within(
            QmpCapabilities,
            until.saturating_duration_since(Instant::now()),
        )
        .await?;
        Ok(qmp)
    }

    /// The release of QEMU, from its greeting.
    #[must_use]
    pub fn version(&self) -> &QemuVersion {
        &self.connection.version
    }

    /// The process that listens on the monitor socket, as the kernel recorded it (`SO_PEERCRED`):
    /// QEMU, unless it was given a socket that another process listens on. `None` when that process
    /// is not visible from this PID namespace.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        self.connection.peer_pid
    }

    /// Runs `command` and returns its reply, within the command's own deadline.
    ///
    /// # Errors
    /// [`QmpError::Refused`] when QEMU says no, [`QmpError::Deadline`], [`QmpError::Closed`],
    /// [`QmpError::BadReply`].
    ///
    /// # Cancel safety
    /// Dropping the future loses the reply only. Once it was polled, the command is sent.
    pub async fn execute<C: Command>(&self, command: C) -> Result<C::Reply, QmpError> {
        self.execute_within(command, C::DEADLINE).await
    }

    /// Runs `command` like [`Qmp::execute`], within `deadline`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_within<C: Command>(
        &self,
        command: C,
        deadline: Duration,
    ) -> Result<C::Reply, QmpError> {
        self.typed(command, deadline, None).await
    }

    /// Hands `descriptor` to QEMU, which knows it as `name` from then on, until a command that names it
    /// takes it. One of the same name that nothing took is replaced.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn hand_over(&self, name: String, descriptor: OwnedFd) -> Result<(), QmpError> {
        let command = GetFd { fdname: name };
        self.typed(command, GetFd::DEADLINE, Some(descriptor))
            .await?;
        Ok(())
    }

    async fn typed<C: Command>(
        &self,
        command: C,
        deadline: Duration,
        descriptor: Option<OwnedFd>,
    ) -> Result<C::Reply, QmpError> {
        let arguments =
            serde_json::to_value(&command).map_err(|source| QmpError::BadArguments {
                command: C::NAME,
                source,
            })?;
        let returned = self.call(C::NAME, arguments, deadline, descriptor).await?;
        serde_json::from_value(returned).map_err(|source| QmpError::BadReply {
            command: C::NAME,
            source,
        })
    }

    /// Runs a command that has no type in [`super::command`]. `arguments` is an object or null.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_raw(
        &self,
        command: &'static str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.call(command, arguments, deadline, None).await
    }

    async fn call(
        &self,
        command: &'static str,
        arguments: Value,
        deadline: Duration,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let shared = &self.connection.shared;
        let (call, reply) = shared.register()?;
        let line = Execute {
            execute: command,
            arguments,
            id: call.id,
        };
        let mut line = serde_json::to_vec(&line)
            .map_err(|source| QmpError::BadArguments { command, source })?;
        line.push(b'\n');
        tracing::trace!(command, id = call.id, "QMP command");
        let sent = shared.writer.send_along(&line, |monitor, ahead| {
            if let Some(descriptor) = descriptor {
                monitor.pass(descriptor, ahead);
            }
        });
        if let Err(source) = sent {
            shared.close(CloseReason::Write(source));
        }
        match timeout(deadline, reply).await {
            Ok(Ok(Ok(returned))) => Ok(returned),
            Ok(Ok(Err(ErrorBody { class, desc }))) => Err(QmpError::Refused {
                command,
                class,
                desc,
            }),
            Ok(Err(_unanswered)) => Err(shared.closed()),
            Err(_elapsed) => Err(QmpError::Deadline {
                command,
                within: deadline,
            }),
        }
    }

    /// A stream of every event that arrives from now on. On a closed connection it fails at once.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        let shared = &self.connection.shared;
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = shared.lock();
        if state.closed.is_none() {
            state.subscribers.push(sender);
        }
        EventStream::new(receiver, Arc::clone(shared))
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.shared.lock().closed.is_some()
    }

    /// The machine type that runs, versioned as for `-machine`, such as `pc-q35-7.2`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn machine_type(&self) -> Result<String, QmpError> {
        let returned = self
            .execute(QomGet {
                path: "/machine".to_owned(),
                property: "type".to_owned(),
            })
            .await?;
        let text: String =
            serde_json::from_value(returned).map_err(|source| QmpError::BadReply {
                command: QomGet::NAME,
                source,
            })?;
        Ok(text.strip_suffix("-machine").unwrap_or(&text).to_owned())
    }
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp")
            .field("version", &self.connection.version)
            .field("peer_pid", &self.connection.peer_pid)
            .finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close(CloseReason::Dropped);
    }
}

/// A registered call; forgets the call when dropped.
struct Call<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.shared.lock().pending.remove(&self.id);
    }
}

type Reply = oneshot::Receiver<Result<Value, ErrorBody>>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<(Call<'_>, Reply), QmpError> {
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(QmpError::Closed {
                source: Arc::clone(why),
            });
        }
        state.last_id += 1;
        let id = state.last_id;
        let (sender, receiver) = oneshot::channel();
        state.pending.insert(id, sender);
        Ok((Call { shared: self, id }, receiver))
    }

    /// Ends the connection for every waiter. The first reason stays.
    fn close(&self, why: CloseReason) {
        let mut state = self.lock();
        if state.closed.is_none() {
            tracing::debug!(why = %why, "QMP connection closed");
            state.closed = Some(Arc::new(why));
        }
        state.pending.clear();
        state.subscribers.clear();
        drop(state);
        self.writer.close();
    }

    /// The error for whoever finds the connection ended.
    pub(super) fn closed(&self) -> QmpError {
        let why = self.lock().closed.clone();
        QmpError::Closed {
            source: why.unwrap_or_else(|| Arc::new(CloseReason::Dropped)),
        }
    }

    fn take(&self, message: Message, line: &[u8]) -> Result<(), CloseReason> {
        let mut state = self.lock();
        if let Some(name) = message.event {
            let event = Event {
                name: EventName::from(name.as_str()),
                data: message.data,
                timestamp_us: message.timestamp.and_then(|at| at.micros()),
            };
            tracing::debug!(event = %event.name, "QMP event");
            state
                .subscribers
                .retain(|subscriber| subscriber.send(event.clone()).is_ok());
            return Ok(());
        }
        let result = match (message.returned, message.error) {
            (_, Some(error)) => Err(error),
            (Some(returned), None) => Ok(returned),
            (None, None) => {
                return Err(CloseReason::Unexpected {
                    start: start_of(line),
                });
            }
        };
        let Some(id) = message.id.filter(|id| (1..=state.last_id).contains(id)) else {
            return Err(CloseReason::Unexpected {
                start: start_of(line),
            });
        };
        match state.pending.remove(&id).map(|waiter| waiter.send(result)) {
            Some(Ok(())) => {}
            Some(Err(_)) | None => tracing::debug!(id, "QMP reply that nobody waits for"),
        }
        Ok(())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

async fn greeting(
    lines: &mut LineReader<OwnedReadHalf>,
    until: Instant,
) -> Result<QemuVersion, QmpError> {
    let line = match timeout_at(until, lines.next()).await {
        Ok(Ok(line)) => line,
        Ok(Err(CloseReason::LineTooLong { start, .. })) => return Err(QmpError::NotQmp { start }),
        Ok(Err(why)) => {
            return Err(QmpError::Closed {
                source: Arc::new(why),
            });
        }
        Err(_elapsed) if !lines.partial().is_empty() => {
            return Err(QmpError::NotQmp {
                start: start_of(lines.partial()),
            });
        }
        Err(_elapsed) => {
            return Err(QmpError::NoGreeting {
                within: deadline::QMP_CONNECT,
            });
        }
    };
    match serde_json::from_slice::<Greeting>(&line) {
        Ok(greeting) => Ok(greeting.qmp.version),
        Err(_not_a_greeting) => Err(QmpError::NotQmp {
            start: start_of(&line),
        }),
    }
}

async fn read_messages(mut lines: LineReader<OwnedReadHalf>, shared: Arc<Shared>) {
    let why = loop {
        let line = match lines.next().await {
            Ok(line) => line,
            Err(why) => break why,
        };
        let taken = serde_json::from_slice(&line)
            .map_err(|source| CloseReason::Garbage {
                start: start_of(&line),
                source,
            })
            .and_then(|message| shared.take(message, &line));
        if let Err(why) = taken {
            break why;
        }
    };
    shared.close(why);
}

async fn write_backlog(shared: Arc<Shared>) {
    if let Err(source) = shared.writer.drain().await {
        shared.close(CloseReason::Write(source));
    }
}
