//! Device counters, read fast enough for a polling loop.
//!
//! [`CounterReader`] talks to the kernel on a socket of its own, without a task in between: one
//! send, one receive, about 2 us. The kernel answers inside the send, so nothing here blocks for
//! longer than the kernel holds its own lock (the one that every netlink change of devices takes).

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::{NetError, NetNs, Result};

const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NETLINK_HEADER: usize = 16;
/// Length of `struct if_stats_msg`: family u8, 3 bytes of padding, ifindex u32, filter mask u32.
const STATS_HEADER: usize = 12;
const IFLA_STATS_LINK_64: u16 = 1;
/// Bit of IFLA_STATS_LINK_64 in the filter mask.
const FILTER_LINK_64: u32 = 1;

const OPERATION: &str = "read the counters of device";

/// Counters of a device since it was created, in packets (skbs) and bytes as the driver counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets received by the device: for a tap, written by QEMU.
    pub rx_packets: u64,
    /// Packets sent by the device: for a tap, read by QEMU.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received that were bad.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets received that were dropped.
    pub rx_dropped: u64,
    /// Packets to be sent that were dropped: for a tap, because its ring was full.
    pub tx_dropped: u64,
}

/// Reads the counters of one device again and again.
#[derive(Debug)]
pub struct CounterReader {
    socket: OwnedFd,
    ifindex: u32,
    sequence: u32,
}

impl CounterReader {
    /// Opens a reader for the device with this index inside `netns`.
    ///
    /// # Errors
    /// The socket can't be opened, or the device does not exist.
    pub fn open(netns: &NetNs, ifindex: u32) -> Result<Self> {
        let socket = netns
            .run(|| {
                socket(
                    AddressFamily::Netlink,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::NetlinkRoute,
                )
            })?
            .map_err(|errno| NetError::kernel("open a netlink socket in", netns, errno))?;
        let mut reader = Self {
            socket,
            ifindex,
            sequence: 0,
        };
        reader.read()?;
        Ok(reader)
    }

    /// The device's index.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Reads the counters as they are now. May be called on a runtime thread.
    ///
    /// # Errors
    /// The device is gone (`already_gone()`).
    pub fn read(&mut self) -> Result<LinkCounters> {
        self.sequence = self.sequence.wrapping_add(1);
        let failed = |errno| NetError::kernel(OPERATION, self.ifindex, errno);
        let fd = self.socket.as_raw_fd();
        send(fd, &self.request(), MsgFlags::empty()).map_err(failed)?;
        let mut buffer = [0_u8; 512];
        loop {
            let length = recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).map_err(failed)?;
            let reply = buffer.get(..length).unwrap_or_default();
            match parse(reply, self.sequence) {
                Parsed::Counters(counters) => return Ok(counters),
                Parsed::Refused(errno) => return Err(failed(errno)),
                // An answer to an earlier request whose reader was interrupted.
                Parsed::Foreign => {}
                Parsed::Garbled => {
                    return Err(NetError::Incomplete {
                        operation: OPERATION,
                        object: self.ifindex.to_string(),
                        missing: "the counters",
                    });
                }
            }
        }
    }

    fn request(&self) -> [u8; NETLINK_HEADER + STATS_HEADER] {
        let mut message = [0; NETLINK_HEADER + STATS_HEADER];
        let mut put = |at: usize, bytes: &[u8]| {
            message[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &28_u32.to_ne_bytes());
        put(4, &RTM_GETSTATS.to_ne_bytes());
        put(6, &NLM_F_REQUEST.to_ne_bytes());
        put(8, &self.sequence.to_ne_bytes());
        put(20, &self.ifindex.to_ne_bytes());
        put(24, &FILTER_LINK_64.to_ne_bytes());
        message
    }
}

enum Parsed {
    Counters(LinkCounters),
    Refused(Errno),
    Foreign,
    Garbled,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_ne_bytes(*b))
}

fn parse(reply: &[u8], sequence: u32) -> Parsed {
    match (u16_at(reply, 4), u32_at(reply, 8)) {
        (Some(_), Some(other)) if other != sequence => Parsed::Foreign,
        (Some(NLMSG_ERROR), Some(_)) => u32_at(reply, NETLINK_HEADER).map_or(
            Parsed::Garbled,
            // The kernel sends a negative errno.
            |code| Parsed::Refused(Errno::from_raw(code.cast_signed().saturating_neg())),
        ),
        (Some(RTM_NEWSTATS), Some(_)) => reply
            .get(NETLINK_HEADER + STATS_HEADER..)
            .and_then(find_counters)
            .map_or(Parsed::Garbled, Parsed::Counters),
        _ => Parsed::Garbled,
    }
}

fn find_counters(mut attributes: &[u8]) -> Option<LinkCounters> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == IFLA_STATS_LINK_64 {
            return counters(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// `struct rtnl_link_stats64` begins with these eight; later kernels append more.
fn counters(value: &[u8]) -> Option<LinkCounters> {
    let (words, _) = value.as_chunks::<8>();
    let mut words = words.iter().map(|b| u64::from_ne_bytes(*b));
    Some(LinkCounters {
        rx_packets: words.next()?,
        tx_packets: words.next()?,
        rx_bytes: words.next()?,
        tx_bytes: words.next()?,
        rx_errors: words.next()?,
        tx_errors: words.next()?,
        rx_dropped: words.next()?,
        tx_dropped: words.next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_counters_and_needs_no_privilege() {
        let own = NetNs::current().unwrap();
        let mut reader = CounterReader::open(&own, 1).unwrap();
        let first = reader.read().unwrap();
        let second = reader.read().unwrap();
        assert_eq!(
            first.rx_packets, first.tx_packets,
            "what lo sends, lo receives"
        );
        assert!(second.tx_packets >= first.tx_packets);
    }

    #[test]
    fn a_device_that_is_not_there_is_gone() {
        let own = NetNs::current().unwrap();
        assert!(
            CounterReader::open(&own, 0x7fff_fff0)
                .unwrap_err()
                .already_gone()
        );
    }

    #[test]
    fn a_cut_answer_is_not_taken_for_counters() {
        let mut reply = vec![0; NETLINK_HEADER + STATS_HEADER + 4 + 64];
        reply[4..6].copy_from_slice(&RTM_NEWSTATS.to_ne_bytes());
        reply[28..30].copy_from_slice(&68_u16.to_ne_bytes());
        reply[30..32].copy_from_slice(&IFLA_STATS_LINK_64.to_ne_bytes());
        reply[40..48].copy_from_slice(&7_u64.to_ne_bytes());
        assert!(matches!(parse(&reply, 0), Parsed::Counters(c) if c.tx_packets == 7));
        for length in 0..reply.len() {
            assert!(
                !matches!(parse(&reply[..length], 0), Parsed::Counters(_)),
                "{length}"
            );
        }
        assert!(matches!(parse(&reply, 1), Parsed::Foreign));
    }
}
