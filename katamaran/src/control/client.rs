//! The source's end of a control session.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::channel::{Core, Incoming, Outgoing, Protocol, Session, Timing, frame, garbled};
use super::clock::ClockOffset;
use super::error::ControlError;
use super::frame::FrameError;
use crate::stream::ByteStream;

/// Sends requests. Clones share the session; it ends when the last one is dropped.
pub struct Client<P> {
    session: Arc<Session>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

/// Every notice of the destination, in order, from the start of the session.
///
/// The queue has no limit: read it.
#[derive(Debug)]
pub struct Notices<P: Protocol> {
    notices: mpsc::UnboundedReceiver<P::Notice>,
    core: Arc<Core>,
}

impl<P: Protocol> Client<P> {
    /// Starts a session on a connection whose preamble was sent.
    #[must_use]
    pub fn start(io: impl ByteStream + 'static, timing: Timing) -> (Self, Notices<P>) {
        let (sender, notices) = mpsc::unbounded_channel();
        let session = Session::start(Box::new(io), timing, move |core, message| {
            let kind = match message {
                Incoming::Reply { id, body } => return core.complete(id, Ok(body)),
                Incoming::Fault { id, fault } => return core.complete(id, Err(fault)),
                Incoming::Refused(source) => return Err(ControlError::Refused { source }),
                Incoming::Notice(body) => {
                    let notice = serde_json::from_value(body)
                        .map_err(|source| garbled(FrameError::NotAMessage { source }))?;
                    if sender.send(notice).is_err() {
                        tracing::debug!("notice that nobody waits for");
                    }
                    return Ok(());
                }
                Incoming::Request { .. } => "request",
                Incoming::Ping { .. } | Incoming::Pong { .. } => "heartbeat",
            };
            Err(garbled(FrameError::WrongRole { kind }))
        });
        let core = Arc::clone(session.core());
        let protocol = std::marker::PhantomData;
        (
            Self {
                session: Arc::new(session),
                protocol,
            },
            Notices { notices, core },
        )
    }

    /// Sends a request, at once, and waits for its reply.
    ///
    /// # Errors
    /// [`ControlError::Fault`] is the destination's own answer. After an error for which
    /// [`ControlError::never_sent`] holds, the destination has not seen the request; after any
    /// other it may have.
    ///
    /// # Cancel safety
    /// Dropping the future loses the reply only. Once it was polled, the request is sent.
    pub async fn request(
        &self,
        request: &P::Request,
        deadline: Duration,
    ) -> Result<P::Reply, ControlError> {
        let core = self.session.core();
        let mut call = core.register()?;
        core.send(&frame(&Outgoing::Request {
            id: call.id,
            body: request,
        })?)?;
        match timeout(deadline, &mut call.reply).await {
            Ok(Ok(Ok(body))) => {
                serde_json::from_value(body).map_err(|source| ControlError::BadReply {
                    source: Arc::new(source),
                })
            }
            Ok(Ok(Err(source))) => Err(ControlError::Fault { source }),
            Ok(Err(_unanswered)) => Err(core.over()),
            Err(_elapsed) => Err(ControlError::Deadline { within: deadline }),
        }
    }

    /// The destination's clock against ours, once the first heartbeat was answered.
    #[must_use]
    pub fn clock(&self) -> Option<ClockOffset> {
        self.session.core().clock()
    }

    /// Waits for the end of the session and says why it ended.
    pub async fn ended(&self) -> ControlError {
        self.session.core().ended().await
    }

    /// Ends the session for all clones, after everything was sent, and waits for the destination to
    /// end it too, within [`deadline::CONTROL_CLOSE`](crate::deadline::CONTROL_CLOSE).
    pub async fn close(&self) {
        self.session.close().await;
    }
}

impl<P: Protocol> Notices<P> {
    /// The next notice.
    ///
    /// # Errors
    /// Why the session is over, once all notices before that were taken.
    ///
    /// # Cancel safety
    /// Cancel safe: no notice is lost.
    pub async fn next(&mut self) -> Result<P::Notice, ControlError> {
        match self.notices.recv().await {
            Some(notice) => Ok(notice),
            None => Err(self.core.over()),
        }
    }

    /// The next notice, if one has arrived already.
    pub fn try_next(&mut self) -> Option<P::Notice> {
        self.notices.try_recv().ok()
    }
}

impl<P> Clone for Client<P> {
    fn clone(&self) -> Self {
        Self {
            session: Arc::clone(&self.session),
            protocol: self.protocol,
        }
    }
}

impl<P> fmt::Debug for Client<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("core", self.session.core())
            .finish_non_exhaustive()
    }
}
