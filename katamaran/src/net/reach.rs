//! How much goes through: a device's rate, and the longest packet that a path carries.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::errno::Errno;

use super::{NetError, NetNs, Result, sys};

/// Nobody listens there: a packet that arrives is answered with "port unreachable".
const DISCARD: u16 = 9;
const UDP_HEADER: u32 = 8;
/// How often a packet is sent when nobody answers.
const TRIES: u32 = 3;

/// What became of a packet of a given length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// The other node has said that it got it.
    Arrived,
    /// A node on the way has no room for it. The kernel has noted what it takes instead.
    TooBig,
    /// Nobody said anything: it was dropped, or its answer was.
    Silence,
}

/// Sends a packet of `length` bytes, IP header included, that nobody may fragment, from `local` to an unused
/// port of `peer`. Blocks for `patience` at most.
///
/// # Errors
/// It can't be sent.
pub fn probe_path(
    netns: &NetNs,
    local: IpAddr,
    peer: IpAddr,
    length: u32,
    patience: Duration,
) -> Result<Passage> {
    let failed = |errno| NetError::kernel("send a probe to", peer, errno);
    let io = |error: std::io::Error| failed(errno_of(&error));
    let ip_header = if peer.is_ipv4() { 20 } else { 40 };
    let payload = usize::try_from(length.saturating_sub(ip_header + UDP_HEADER))
        .map_err(|_too_big| failed(Errno::EMSGSIZE))?;
    let socket = netns.run(|| UdpSocket::bind((local, 0)))?.map_err(io)?;
    sys::set_probing(socket.as_fd(), peer.is_ipv4()).map_err(failed)?;
    socket.connect(SocketAddr::new(peer, DISCARD)).map_err(io)?;
    socket
        .set_read_timeout(Some(patience / TRIES))
        .map_err(io)?;
    let bytes = vec![0; payload];
    for _ in 0..TRIES {
        // An answer to the packet before may be told here as well.
        let told = match socket.send(&bytes) {
            Ok(_) => socket.recv(&mut [0; 1]).err(),
            Err(error) => Some(error),
        };
        match told.as_ref().map(errno_of) {
            Some(Errno::ECONNREFUSED) | None => return Ok(Passage::Arrived),
            Some(Errno::EMSGSIZE) => return Ok(Passage::TooBig),
            Some(Errno::EAGAIN) => {}
            Some(errno) => return Err(failed(errno)),
        }
    }
    Ok(Passage::Silence)
}

/// A device's rate in bits per second; `None` where its driver tells none.
///
/// # Errors
/// There is no such device.
pub fn link_rate(netns: &NetNs, device: &str) -> Result<Option<u64>> {
    let failed = |errno| NetError::kernel("ask for the rate of", device, errno);
    let socket = netns
        .run(|| UdpSocket::bind("0.0.0.0:0").or_else(|_no_v4| UdpSocket::bind("[::]:0")))?
        .map_err(|error| failed(errno_of(&error)))?;
    match sys::link_megabits(socket.as_fd(), device) {
        Ok(megabits) => Ok(megabits.map(|megabits| u64::from(megabits) * 1_000_000)),
        Err(Errno::EOPNOTSUPP | Errno::EPERM) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}
