//! Routes to many addresses, without a turn through the runtime for each.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;

use super::Result;
use super::handle::Operation;
use super::route::{self, Route};

/// Questions sent at once. Their answers wait in the socket's buffer, which has room for some hundreds.
const BATCH: usize = 64;
/// More than the kernel puts into one answer.
const RECEIVE: usize = 1 << 14;

/// Looks routes up in the namespace in which it was opened. The kernel works a question off while it is being sent, so
/// nothing here waits; but some thousands take milliseconds.
pub struct Ways {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Ways {
    /// Opens it in the calling thread's namespace.
    ///
    /// # Errors
    /// No such socket can be had.
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|error| operation().error(errno(&error)))?,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE),
        })
    }

    /// The route to each of these addresses; `None` where none leads.
    ///
    /// # Errors
    /// The kernel could not be asked, or did not answer each question.
    pub fn to(&mut self, addresses: &[IpAddr]) -> Result<Vec<Option<Route>>> {
        let mut routes = Vec::with_capacity(addresses.len());
        for batch in addresses.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut questions = Vec::new();
            for address in batch {
                self.sequence = self.sequence.wrapping_add(1);
                questions.extend_from_slice(&question(*address, self.sequence));
            }
            let sent = self.socket.send(&questions, MSG_DONTWAIT);
            sent.map_err(|error| operation().error(errno(&error)))?;
            let start = routes.len();
            routes.resize(start + batch.len(), None);
            for _ in batch {
                let (sequence, reply) = self.answer()?;
                let place = usize::try_from(sequence.wrapping_sub(first)).ok();
                let slot = place
                    .and_then(|place| Some((batch.get(place)?, routes.get_mut(start + place)?)));
                let Some((address, slot)) = slot else {
                    return Err(operation().incomplete("an answer to this question"));
                };
                *slot = reply.and_then(|reply| Route::read(*address, reply).ok());
            }
        }
        Ok(routes)
    }

    /// The next answer, and the number of its question.
    fn answer(&mut self) -> Result<(u32, Option<netlink_packet_route::route::RouteMessage>)> {
        self.buffer.clear();
        self.socket
            .recv(&mut self.buffer, MSG_DONTWAIT)
            .map_err(|error| operation().error(errno(&error)))?;
        let garbled = || operation().incomplete("an answer that can be read");
        let number = NetlinkBuffer::new_checked(&self.buffer).map_err(|_short| garbled())?;
        let (sequence, kind) = (number.sequence_number(), number.message_type());
        if kind == NLMSG_ERROR {
            return Ok((sequence, None));
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer);
        match message.map_err(|_unknown| garbled())?.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(reply)) => {
                Ok((sequence, Some(reply)))
            }
            _ => Err(garbled()),
        }
    }
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ways").finish_non_exhaustive()
    }
}

fn question(address: IpAddr, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let query = RouteNetlinkMessage::GetRoute(route::query(address));
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(query));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

fn operation() -> Operation {
    Operation::new("look up the routes to", "the VM's peers")
}

fn errno(error: &std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}
