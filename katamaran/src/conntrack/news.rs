//! Connections that have just begun, told by the kernel.
//!
//! A listing walks the whole table of the machine: with the 262,144 buckets of a big node that takes 7 ms of a processor
//! that handles no packets meanwhile. Between listings, and in the pause, the kernel's own news say which entries are
//! worth a look.

use std::fmt;

use netlink_sys::Socket;
use nix::errno::Errno;

use super::ConntrackError;
use super::entry::Entry;
use super::message;
use super::socket;

/// `NFNLGRP_CONNTRACK_NEW`
const GROUP_NEW: u32 = 1;
/// News that may wait: some ten thousands.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Whether the kernel tells news at all. Absent on a kernel without them.
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// Connections that have begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// As they were then. Some of what an entry has is missing: read it.
    pub entries: Vec<Entry>,
    /// The kernel did not have to leave some out.
    pub complete: bool,
}

/// News of the namespace in which they were subscribed to.
pub struct News {
    socket: Socket,
    buffer: Vec<u8>,
}

impl News {
    /// Subscribes to the calling thread's network namespace; `None` if its kernel tells no news.
    ///
    /// # Errors
    /// No such socket can be had.
    pub fn subscribe() -> Result<Option<Self>, ConntrackError> {
        let told = std::fs::read_to_string(EVENTS).is_ok_and(|text| text.trim() != "0");
        if !told {
            return Ok(None);
        }
        let open = |source| ConntrackError::Open { source };
        let socket = socket::open(RECEIVE_BUFFER).map_err(open)?;
        socket.add_membership(GROUP_NEW).map_err(open)?;
        Ok(Some(Self {
            socket,
            buffer: socket::buffer(),
        }))
    }

    /// What has begun since the last call.
    ///
    /// # Errors
    /// The socket broke.
    pub fn take(&mut self) -> Result<Begun, ConntrackError> {
        const DOING: &str = "hear of new connections";
        let mut begun = Begun {
            entries: Vec::new(),
            complete: true,
        };
        loop {
            match socket::receive(&self.socket, &mut self.buffer) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => return Ok(begun),
                Err(Errno::ENOBUFS) => {
                    begun.complete = false;
                    continue;
                }
                Err(errno) => return Err(ConntrackError::kernel(DOING, errno)),
            }
            for message in socket::messages(&self.buffer) {
                let entry = message.ok().and_then(|m| message::parse(m.payload()));
                match entry {
                    Some(entry) => begun.entries.push(entry),
                    None => begun.complete = false,
                }
            }
        }
    }
}

impl fmt::Debug for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("News").finish_non_exhaustive()
    }
}
