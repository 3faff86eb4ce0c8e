//! A netlink socket in one network namespace.
//!
//! Requests are serialised: the kernel refuses a second dump on a socket while one is going on
//! (EBUSY). Each request has a deadline, also against an answer that the netlink library can't
//! decode and therefore drops.

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_ECHO, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::sys::AsyncSocket as _;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{NetError, NetNs, Result};

/// How long one netlink request may take. The kernel works on most of them under one global lock
/// that a busy node can hold for long, and the first device or qdisc of its kind loads a module.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// How long the connection's task may take to end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// A netlink handle of one namespace. Clones share the socket; it is closed by [`Netlink::close`], or
/// when the last clone is dropped.
#[derive(Clone)]
pub struct Netlink {
    shared: Arc<Shared>,
}

struct Shared {
    handle: Mutex<Option<rtnetlink::Handle>>,
    connection: StdMutex<Option<AbortOnDropHandle<()>>>,
    netns: NetNs,
}

/// What a request is about, for its error messages.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    pub(super) object: String,
}

impl Operation {
    pub(super) fn new(name: &'static str, object: impl ToString) -> Self {
        Self {
            name,
            object: object.to_string(),
        }
    }

    pub(super) fn error(&self, errno: Errno) -> NetError {
        NetError::kernel(self.name, &self.object, errno)
    }

    pub(super) fn incomplete(&self, missing: &'static str) -> NetError {
        NetError::Incomplete {
            operation: self.name,
            object: self.object.clone(),
            missing,
        }
    }

    pub(super) fn deadline(&self, after: Duration) -> NetError {
        NetError::Deadline {
            operation: self.name,
            object: self.object.clone(),
            after,
        }
    }

    fn closed(&self) -> NetError {
        NetError::Closed {
            operation: self.name,
            object: self.object.clone(),
        }
    }
}

impl Netlink {
    /// Opens a socket inside `netns`.
    pub(super) fn open(netns: &NetNs) -> Result<Self> {
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|_outside| NetError::NoRuntime {
                netns: netns.to_string(),
            })?;
        let (mut connection, handle, _unsolicited) = netns
            .run(|| {
                let _entered = runtime.enter();
                rtnetlink::new_connection()
            })?
            .map_err(|error| {
                let errno = error
                    .raw_os_error()
                    .map_or(Errno::UnknownErrno, Errno::from_raw);
                NetError::kernel("open a netlink socket in", netns, errno)
            })?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        if let Err(error) = connection.socket_mut().socket_mut().set_ext_ack(true) {
            tracing::debug!(%error, "no extended netlink acknowledgements");
        }
        let task = AbortOnDropHandle::new(runtime.spawn(connection));
        Ok(Self {
            shared: Arc::new(Shared {
                handle: Mutex::new(Some(handle)),
                connection: StdMutex::new(Some(task)),
                netns: netns.clone(),
            }),
        })
    }

    /// The namespace that this handle works in.
    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.shared.netns
    }

    /// Closes the socket and waits until its task has ended. Requests of clones fail from then on.
    ///
    /// # Errors
    /// The task did not end in time; it was aborted then.
    pub async fn close(self) -> Result<()> {
        let operation = Operation::new("close the netlink socket in", self.netns());
        drop(self.shared.handle.lock().await.take());
        let task = self
            .shared
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(task) = task else { return Ok(()) };
        match tokio::time::timeout(CLOSE_DEADLINE, task).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_panicked)) => Err(operation.closed()),
            Err(_elapsed) => Err(operation.deadline(CLOSE_DEADLINE)),
        }
    }

    /// A request that only the kernel's acknowledgement answers. `flags`: NLM_F_CREATE and the like.
    pub(super) async fn execute(
        &self,
        operation: &Operation,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        self.exchange(operation, message, NLM_F_ACK | flags)
            .await
            .map(drop)
    }

    /// A request for one object. The kernel answers one for a queueing discipline with a notification,
    /// which reaches the asker only with NLM_F_ECHO; other kinds ignore the flag.
    pub(super) async fn get(
        &self,
        operation: &Operation,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage> {
        self.exchange(operation, message, NLM_F_ACK | NLM_F_ECHO)
            .await?
            .pop()
            .ok_or_else(|| operation.incomplete("the object, or can't be decoded"))
    }

    /// A request for all objects of a kind.
    pub(super) async fn dump(
        &self,
        operation: &Operation,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.exchange(operation, message, NLM_F_DUMP).await
    }

    /// # Cancel safety
    /// A dropped exchange may still take effect in the kernel; its late answer is ignored.
    async fn exchange(
        &self,
        operation: &Operation,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        tokio::time::timeout(REQUEST_DEADLINE, self.converse(operation, request))
            .await
            .unwrap_or_else(|_elapsed| Err(operation.deadline(REQUEST_DEADLINE)))
    }

    async fn converse(
        &self,
        operation: &Operation,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let mut slot = self.shared.handle.lock().await;
        let handle = slot.as_mut().ok_or_else(|| operation.closed())?;
        let mut replies = handle
            .request(request)
            .map_err(|_gone| operation.closed())?;
        let mut objects = Vec::new();
        let mut finished = false;
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(object) => objects.push(object),
                NetlinkPayload::Error(error) => {
                    if error.code.is_some() {
                        return Err(refusal(operation, &error, reply.header.flags));
                    }
                    finished = true;
                }
                NetlinkPayload::Done(done) if done.code != 0 => {
                    return Err(operation.error(Errno::from_raw(done.code.saturating_abs())));
                }
                NetlinkPayload::Done(_) => finished = true,
                // Noop and Overrun carry nothing for us; later variants of the library neither.
                _ => {}
            }
        }
        // The library ends the stream without a word when its connection breaks.
        if finished {
            Ok(objects)
        } else {
            Err(operation.closed())
        }
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Netlink({})", self.netns())
    }
}

fn refusal(operation: &Operation, error: &ErrorMessage, flags: u16) -> NetError {
    NetError::Kernel {
        operation: operation.name,
        object: operation.object.clone(),
        detail: (flags & NLM_F_ACK_TLVS != 0)
            .then(|| extended_ack(&error.header, flags & NLM_F_CAPPED != 0))
            .flatten(),
        errno: Errno::from_raw(error.raw_code().saturating_abs()),
    }
}

/// The message text in an error's payload:
///
/// | bytes | what |
/// |---|---|
/// | 16 | header of the refused request, its length first |
/// | the request's length - 16, padded to 4 | the rest of it, unless the answer was capped |
/// | the rest | attributes: length u16, type u16, value, padded to 4; type 1 is the text |
fn extended_ack(payload: &[u8], capped: bool) -> Option<String> {
    const HEADER: usize = 16;
    const TEXT: u16 = 1;
    let request = u32::from_ne_bytes(*payload.first_chunk()?);
    let skip = if capped {
        HEADER
    } else {
        usize::try_from(request).ok()?.next_multiple_of(4)
    };
    let mut rest = payload.get(skip..)?;
    while let Some(header) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(4..length)?;
        if kind == TEXT {
            let text = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value));
            return Some(text.into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(request_length: u32, body: usize) -> Vec<u8> {
        let mut bytes = request_length.to_ne_bytes().to_vec();
        bytes.resize(16 + body, 0);
        bytes.extend_from_slice(&8_u16.to_ne_bytes());
        bytes.extend_from_slice(&2_u16.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&7_u16.to_ne_bytes());
        bytes.extend_from_slice(&1_u16.to_ne_bytes());
        bytes.extend_from_slice(b"no\0\0");
        bytes
    }

    #[test]
    fn the_text_of_an_extended_ack_is_found() {
        assert_eq!(extended_ack(&payload(16, 0), true).as_deref(), Some("no"));
        assert_eq!(extended_ack(&payload(26, 12), false).as_deref(), Some("no"));
    }

    #[test]
    fn a_cut_extended_ack_gives_no_text_and_no_panic() {
        let whole = payload(26, 12);
        for length in 0..whole.len() - 1 {
            let cut = extended_ack(&whole[..length], false);
            assert!(cut.is_none_or(|text| text == "no"));
        }
    }
}
