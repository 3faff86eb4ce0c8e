//! Puts frames into a device, past its queueing discipline.
//!
//! Frames that were recovered from the source's tap are older than those that wait in the plug at the
//! destination, and must reach the VM first. A packet socket with PACKET_QDISC_BYPASS hands them to the
//! tap's driver directly. What follows from that:
//!
//! - The TC egress hook is passed by as well, and so is the `net_dev_start_xmit` trace point: the ledger
//!   has to add what was injected here by itself ([`FrameInjector::injected`]).
//! - With PACKET_VNET_HDR the kernel finishes checksums and segments super-packets as the header says.
//! - A full ring and a device without carrier are not told apart: the frame is gone, and the send
//!   fails with ENOBUFS ([`NetError::NoRoom`]).

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use katamaran_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendmsg, socket};

use super::link::MacAddr;
use super::{NetError, NetNs, Result, sys};
use crate::session_id::SessionId;

/// Length of a virtio-net header on a packet socket.
pub const VNET_HEADER: usize = 10;

/// Ethertype of bait frames: IEEE 802 local experimental 1, which no guest has a protocol for.
pub const BAIT_ETHERTYPE: u16 = 0x88b5;

/// Shortest Ethernet frame, without its checksum.
const FRAME_MIN: usize = 60;

/// The first ten bytes of a virtio-net header, as read from a tap. Fields are in the host's order on
/// little-endian machines.
///
/// | bytes | what |
/// |---|---|
/// | 1 | flags: 1 = checksum to be finished |
/// | 1 | kind of segmentation, 0 = none |
/// | 2 | length of all headers |
/// | 2 | payload of each segment |
/// | 2 | where checksumming starts |
/// | 2 | where the checksum goes, from there |
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader(pub [u8; VNET_HEADER]);

impl VnetHeader {
    /// Payload of each segment, bytes; 0 for a frame that is no super-packet.
    #[must_use]
    pub fn segment_size(&self) -> u32 {
        let [_, kind, _, _, s0, s1, ..] = self.0;
        match kind {
            0 => 0,
            _ => u32::from(u16::from_le_bytes([s0, s1])),
        }
    }

    /// The number of packets on the wire that a frame of `length` bytes with this header becomes.
    #[must_use]
    pub fn wire_segments(&self, length: usize) -> u64 {
        let [_, kind, h0, h1, s0, s1, ..] = self.0;
        let headers = usize::from(u16::from_le_bytes([h0, h1]));
        let segment = usize::from(u16::from_le_bytes([s0, s1]));
        if kind == 0 || segment == 0 {
            return 1;
        }
        let payload = length.saturating_sub(headers);
        payload.div_ceil(segment).max(1) as u64
    }
}

/// A packet socket bound to one device, for sending only.
#[derive(Debug)]
pub struct FrameInjector {
    socket: OwnedFd,
    ifindex: u32,
    injected: u64,
}

impl FrameInjector {
    /// Opens an injector for the device with this index inside `netns`.
    ///
    /// # Errors
    /// CAP_NET_RAW is missing, or the device.
    pub fn open(netns: &NetNs, ifindex: u32) -> Result<Self> {
        let failed = |errno| NetError::kernel("open a packet socket on device", ifindex, errno);
        let socket = netns
            .run(|| {
                let socket = socket(
                    AddressFamily::Packet,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    None,
                )?;
                // Before binding: the kernel refuses the header option on a socket in use.
                sys::set_vnet_header(socket.as_fd())?;
                sys::set_qdisc_bypass(socket.as_fd())?;
                sys::bind_packet(socket.as_fd(), ifindex)?;
                Ok(socket)
            })?
            .map_err(failed)?;
        Ok(Self {
            socket,
            ifindex,
            injected: 0,
        })
    }

    /// Puts one frame into the device's ring, ahead of everything that waits in its queueing
    /// discipline.
    ///
    /// # Errors
    /// [`NetError::FrameTooLong`], [`NetError::NoRoom`], or the device is gone or down. In each case
    /// the frame was not delivered.
    pub fn inject(&mut self, header: VnetHeader, frame: &[u8]) -> Result<()> {
        let parts = [IoSlice::new(&header.0), IoSlice::new(frame)];
        let sent = loop {
            let result = sendmsg::<()>(
                self.socket.as_raw_fd(),
                &parts,
                &[],
                MsgFlags::MSG_DONTWAIT,
                None,
            );
            if result != Err(Errno::EINTR) {
                break result;
            }
        };
        match sent {
            Ok(_) => {
                self.injected += 1;
                Ok(())
            }
            Err(Errno::EMSGSIZE) => Err(NetError::FrameTooLong {
                ifindex: self.ifindex,
                length: frame.len(),
            }),
            Err(Errno::ENOBUFS) => Err(NetError::NoRoom {
                ifindex: self.ifindex,
            }),
            Err(errno) => Err(NetError::kernel(
                "put a frame into device",
                self.ifindex,
                errno,
            )),
        }
    }

    /// Puts a bait frame for `vm` into the device: a QEMU that does not run yet takes one frame from
    /// its tap and may never deliver it; this way it takes the bait and not a packet of the VM.
    /// On a multi-queue tap the kernel chooses the queue, the same one each time: only
    /// that queue gets a bait.
    ///
    /// # Errors
    /// As for [`FrameInjector::inject`].
    pub fn bait(&mut self, vm: MacAddr, session: SessionId) -> Result<()> {
        self.inject(VnetHeader::default(), &bait_frame(vm, session))
    }

    /// Frames put into the device so far, baits included.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.injected
    }
}

/// A bait frame:
///
/// | bytes | what |
/// |---|---|
/// | 6 | the VM's address |
/// | 6 | 02 (locally administered) and the first 5 bytes of the session's id |
/// | 2 | [`BAIT_ETHERTYPE`] |
/// | 14 | `katamaran bait` |
/// | 8 | the session's id |
/// | 24 | zero |
#[must_use]
pub fn bait_frame(vm: MacAddr, session: SessionId) -> Vec<u8> {
    let id = session.0.to_be_bytes();
    let mut frame = Vec::with_capacity(FRAME_MIN);
    frame.extend_from_slice(&vm.0);
    frame.push(2);
    frame.extend(id.iter().take(5));
    frame.extend_from_slice(&BAIT_ETHERTYPE.to_be_bytes());
    frame.extend_from_slice(b"katamaran bait");
    frame.extend_from_slice(&id);
    frame.resize(FRAME_MIN, 0);
    frame
}

/// Whether a frame is a bait, of any session.
#[must_use]
pub fn is_bait(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&BAIT_ETHERTYPE.to_be_bytes())
        && frame.get(14..28) == Some(b"katamaran bait")
}

/// Whom an Ethernet frame is for, by its IP header; `None` where it has none.
#[must_use]
pub fn ip_destination(frame: &[u8]) -> Option<IpAddr> {
    let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    match ethertype {
        ETHERTYPE_IPV4 => Some(IpAddr::from(*frame.get(30..)?.first_chunk::<4>()?)),
        ETHERTYPE_IPV6 => Some(IpAddr::from(*frame.get(38..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_for_whom_its_ip_header_says() {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[30..34].copy_from_slice(&[10, 0, 2, 5]);
        assert_eq!(ip_destination(&frame), Some([10, 0, 2, 5].into()));
        assert_eq!(ip_destination(&frame[..33]), None);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[38..54].copy_from_slice(&[0x20; 16]);
        assert_eq!(ip_destination(&frame), Some([0x20; 16].into()));
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(ip_destination(&frame), None);
    }

    #[test]
    fn a_bait_is_a_shortest_frame_and_is_recognised() {
        let frame = bait_frame(MacAddr([0x52, 0x54, 0, 1, 2, 3]), SessionId(7));
        assert_eq!(frame.len(), FRAME_MIN);
        assert!(is_bait(&frame));
        assert!(!is_bait(&frame[..20]));
        assert!(!is_bait(&[0; FRAME_MIN]));
    }

    #[test]
    fn a_super_packet_counts_as_its_segments() {
        let plain = VnetHeader::default();
        assert_eq!(plain.wire_segments(1514), 1);
        let tcp4 = VnetHeader([1, 1, 66, 0, 0xa8, 0x05, 34, 0, 16, 0]);
        assert_eq!(tcp4.wire_segments(66 + 1448), 1);
        assert_eq!(tcp4.wire_segments(66 + 1449), 2);
        assert_eq!(tcp4.wire_segments(66 + 10 * 1448), 10);
    }
}
