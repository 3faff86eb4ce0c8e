//! Netlink sockets, and what comes out of them.

use netlink_packet_core::{DecodeError, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;
use nix::sys::socket::{setsockopt, sockopt};

/// More than the kernel puts into one datagram.
const RECEIVE: usize = 1 << 16;

/// A socket in the calling thread's network namespace, in which so many bytes may wait. What an administrator has
/// allowed to everybody is less; the table is for those only who may have more.
pub(super) fn open(waiting: usize) -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    if let Err(errno) = setsockopt(&socket, sockopt::RcvBufForce, &waiting) {
        tracing::debug!(%errno, "a netlink socket has the usual buffer only");
    }
    Ok(socket)
}

pub(super) fn buffer() -> Vec<u8> {
    Vec::with_capacity(RECEIVE)
}

/// The next datagram, if there is one already.
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    socket
        .recv(buffer, MSG_DONTWAIT)
        .map(drop)
        .map_err(|error| errno(&error))
}

pub(super) fn send(socket: &Socket, bytes: &[u8]) -> Result<(), Errno> {
    socket
        .send(bytes, MSG_DONTWAIT)
        .map(drop)
        .map_err(|error| errno(&error))
}

/// The messages of a datagram.
pub(super) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, DecodeError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest);
        let length = message.as_ref().map_or(usize::MAX, |message| {
            usize::try_from(message.length()).unwrap_or(usize::MAX)
        });
        rest = length
            .checked_next_multiple_of(4)
            .and_then(|length| rest.get(length..))
            .unwrap_or_default();
        Some(message)
    })
}

fn errno(error: &std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_and_lying_datagrams_end_with_an_error_and_without_panic() {
        let mut message = 16_u32.to_ne_bytes().to_vec();
        message.resize(16, 0);
        let two = [message.clone(), message.clone()].concat();
        assert_eq!(messages(&two).filter(Result::is_ok).count(), 2);
        for length in 17..two.len() {
            let read: Vec<_> = messages(&two[..length]).collect();
            assert!(read.len() == 2 && read[1].is_err());
        }
        message[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(messages(&message).all(|message| message.is_err()));
    }
}
