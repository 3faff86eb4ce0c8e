//! The same frame again and again, as fast as a packet socket takes it.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context, Result};

use super::packet_socket;

/// Frames that the kernel is handed at once.
const BATCH: usize = 64;
const ETHERTYPE_IPV4: u16 = 0x0800;

/// A packet socket on one device.
#[derive(Debug)]
pub(crate) struct Sender {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Sender {
    /// On a device of the calling thread's namespace. It receives nothing.
    pub(crate) fn open(device: &str, frame: Vec<u8>) -> Result<Self> {
        Ok(Self {
            socket: packet_socket::open(device, 0)?,
            frame,
        })
    }

    /// Sends so many.
    pub(crate) fn send(&self, packets: u32) -> Result<()> {
        let mut part = libc::iovec {
            iov_base: self.frame.as_ptr().cast_mut().cast(),
            iov_len: self.frame.len(),
        };
        // SAFETY: all zeros is a valid message without address and control data.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for message in &mut messages {
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut left = packets as usize;
        while left > 0 {
            let count = u32::try_from(left.min(BATCH))?;
            // SAFETY: so many messages are there, and what they point to outlives the call.
            let sent =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
            let sent = usize::try_from(sent)
                .map_err(|_negative| std::io::Error::last_os_error())
                .context("send frames")?;
            left -= sent;
        }
        Ok(())
    }
}

/// A UDP datagram over IPv4 in an Ethernet frame. It has no UDP checksum.
pub(crate) fn udp_frame(
    to: [u8; 6],
    from: [u8; 6],
    (source, destination): (Ipv4Addr, Ipv4Addr),
    payload: usize,
) -> Result<Vec<u8>> {
    let udp = u16::try_from(8 + payload)?;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(source.octets());
    ip.extend(destination.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let [port, length] = [9_u16.to_be_bytes(), udp.to_be_bytes()];
    let udp = [&port[..], &port, &length, &[0, 0], &vec![0; payload]].concat();
    Ok([&to[..], &from, &ETHERTYPE_IPV4.to_be_bytes(), &ip, &udp].concat())
}
