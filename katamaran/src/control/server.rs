//! The destination's end of a control session.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::channel::{
    Bare, Core, Incoming, Outgoing, Protocol, Session, Timing, bare_frame, frame, garbled,
};
use super::clock::ClockOffset;
use super::error::ControlError;
use super::fault::{Fault, FaultCode};
use super::frame::FrameError;
use crate::stream::ByteStream;

/// Requests that may wait; the source waits for a reply before it sends many more.
const QUEUE: usize = 64;

/// Sends replies and notices. Clones share the session; it ends when the last one is dropped.
pub struct Server<P> {
    session: Arc<Session>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

/// The requests of the source, in order.
#[derive(Debug)]
pub struct Requests<P: Protocol> {
    requests: mpsc::Receiver<(RequestId, P::Request)>,
    core: Arc<Core>,
}

/// Stands for a request that waits for its reply.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "the source waits for a reply"]
pub struct RequestId(u64);

impl<P: Protocol> Server<P> {
    /// Starts a session on a connection whose preamble was read.
    #[must_use]
    pub fn start(io: impl ByteStream + 'static, timing: Timing) -> (Self, Requests<P>) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let session = Session::start(Box::new(io), timing, move |core, message| {
            let kind = match message {
                Incoming::Request { id, body } => {
                    let fault = match serde_json::from_value(body) {
                        Ok(request) => match sender.try_send((RequestId(id), request)) {
                            Ok(()) => return Ok(()),
                            Err(TrySendError::Full(_)) => {
                                Fault::new(FaultCode::Busy, "too many requests at once")
                            }
                            Err(TrySendError::Closed(_)) => {
                                Fault::new(FaultCode::Cancelled, "no more requests are taken")
                            }
                        },
                        Err(error) => Fault::new(FaultCode::BadRequest, error.to_string()),
                    };
                    return core.send(&bare_frame(&Bare::Fault { id, fault: &fault })?);
                }
                Incoming::Reply { .. } | Incoming::Fault { .. } => "reply",
                Incoming::Notice(_) => "notice",
                Incoming::Refused(_) => "refusal",
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
            Requests { requests, core },
        )
    }

    /// Answers a request, at once.
    ///
    /// # Errors
    /// The session is over. [`ControlError::Unsendable`]: the reply fits no frame; the source got
    /// a fault instead.
    pub fn reply(
        &self,
        request: RequestId,
        result: Result<P::Reply, Fault>,
    ) -> Result<(), ControlError> {
        let core = self.session.core();
        let RequestId(id) = request;
        core.check()?;
        let reply = match result {
            Ok(body) => frame(&Outgoing::Reply { id, body: &body }),
            Err(fault) => bare_frame(&Bare::Fault { id, fault: &fault }),
        };
        match reply {
            Ok(frame) => core.send(&frame),
            Err(unsendable) => {
                let fault = Fault::new(FaultCode::Failed, unsendable.to_string());
                core.send(&bare_frame(&Bare::Fault { id, fault: &fault })?)?;
                Err(unsendable)
            }
        }
    }

    /// Sends a notice, at once.
    ///
    /// # Errors
    /// The session is over, or the notice fits no frame.
    pub fn notify(&self, notice: &P::Notice) -> Result<(), ControlError> {
        let core = self.session.core();
        core.check()?;
        core.send(&frame(&Outgoing::Notice(notice))?)
    }

    /// The source's clock against ours, once the first heartbeat was answered.
    #[must_use]
    pub fn clock(&self) -> Option<ClockOffset> {
        self.session.core().clock()
    }

    /// Waits for the end of the session and says why it ended.
    pub async fn ended(&self) -> ControlError {
        self.session.core().ended().await
    }

    /// Ends the session for all clones, after everything was sent, and waits for the source to end
    /// it too, within [`deadline::CONTROL_CLOSE`](crate::deadline::CONTROL_CLOSE).
    pub async fn close(&self) {
        self.session.close().await;
    }
}

impl<P: Protocol> Requests<P> {
    /// The next request. What arrived before the session ended is still handed out after it.
    ///
    /// # Errors
    /// Why the session is over, once all requests before that were taken.
    ///
    /// # Cancel safety
    /// Cancel safe: no request is lost.
    pub async fn next(&mut self) -> Result<(RequestId, P::Request), ControlError> {
        match self.requests.recv().await {
            Some(request) => Ok(request),
            None => Err(self.core.over()),
        }
    }
}

impl<P> Clone for Server<P> {
    fn clone(&self) -> Self {
        Self {
            session: Arc::clone(&self.session),
            protocol: self.protocol,
        }
    }
}

impl<P> fmt::Debug for Server<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("core", self.session.core())
            .finish_non_exhaustive()
    }
}
