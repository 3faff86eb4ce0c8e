//! What a VM's network hears of where it is: reverse ARP, which QEMU sends for it (`announce-self`).

use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeValLike as _;

use super::packet_socket;
use crate::lab::Netns;

/// RFC 903.
const RARP: u16 = 0x8035;
const FRAME: usize = 60;

/// Frames that wait to be looked at, each with the time at which the kernel got it.
#[derive(Debug)]
pub struct Announcements(OwnedFd);

impl Announcements {
    /// Listens on a device from now on.
    ///
    /// # Errors
    ///
    /// When there is no such device.
    pub fn listen(netns: &Netns, device: &str) -> Result<Self> {
        netns.run(|| open(device))?.map(Self)
    }

    /// When the VM with this Ethernet address was announced so far, in ns since the epoch.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn of(&self, mac: &str) -> Result<Vec<u64>> {
        let mut heard = Vec::new();
        while let Some((frame, at)) = self.next()? {
            let sender = frame[6..12].iter().map(|byte| format!("{byte:02x}"));
            if sender.collect::<Vec<_>>().join(":") == mac {
                heard.push(at);
            }
        }
        Ok(heard)
    }

    fn next(&self) -> Result<Option<([u8; FRAME], u64)>> {
        let mut frame = [0; FRAME];
        let mut parts = [std::io::IoSliceMut::new(&mut frame)];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let received = recvmsg::<SockaddrStorage>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        );
        let received = match received {
            Ok(received) => received,
            Err(errno) if std::io::Error::from(errno).kind() == ErrorKind::WouldBlock => {
                return Ok(None);
            }
            Err(errno) => return Err(errno).context("receive an announcement"),
        };
        let stamp = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(at) => u64::try_from(at.num_nanoseconds()).ok(),
            _ => None,
        });
        let at = stamp.context("the kernel tells when a frame came")?;
        Ok(Some((frame, at)))
    }
}

fn open(device: &str) -> Result<OwnedFd> {
    let socket = packet_socket::open(device, RARP)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("set SO_TIMESTAMPNS")?;
    Ok(socket)
}
