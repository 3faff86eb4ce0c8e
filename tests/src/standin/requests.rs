//! What a monitor's client asks, line by line, and the descriptors that it sends along.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// One client's requests.
#[derive(Debug)]
pub(super) struct Requests {
    client: UnixStream,
    unread: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Requests {
    pub(super) fn new(client: UnixStream) -> Self {
        Self {
            client,
            unread: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// The next line; nothing when the client is gone.
    pub(super) fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// The oldest descriptor that nobody has taken.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    fn read(&mut self) -> Result<bool> {
        let mut bytes = [0; 4096];
        let mut space = nix::cmsg_space!(RawFd);
        let received = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message =
                recvmsg::<()>(self.client.as_raw_fd(), &mut parts, Some(&mut space), flags)
                    .context("read a request")?;
            for part in message.cmsgs().context("read what came along")? {
                if let ControlMessageOwned::ScmRights(descriptors) = part {
                    self.descriptors
                        .extend(descriptors.into_iter().map(|descriptor| {
                            // SAFETY: the kernel has just given us this descriptor.
                            unsafe { OwnedFd::from_raw_fd(descriptor) }
                        }));
                }
            }
            message.bytes
        };
        self.unread.extend(&bytes[..received]);
        Ok(received > 0)
    }
}
