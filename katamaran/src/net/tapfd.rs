//! The descriptors through which QEMU reads its tap, duplicated: read out what QEMU left unread.
//!
//! How the kernel behaves here:
//!
//! - `pidfd_getfd` gives a second descriptor of the *same* open tap queue. It needs the right to trace
//!   the process (CAP_SYS_PTRACE) and works while the process, or its VM, is stopped. The tap stays
//!   alive, with carrier and with all that its ring holds, for as long as any duplicate is open, even
//!   when QEMU has ended: without one, the ring dies with QEMU.
//! - A packet goes to exactly one reader. Reading here takes packets away from QEMU, so read only while
//!   nobody else does: QEMU's VM is stopped and vhost is off the queue. A stopped QEMU still takes
//!   one packet for each queue, which is then in its own memory and can't be found here.
//! - What is read here counts in the tap's `tx_packets`, like what QEMU reads.
//! - The blocking mode belongs to the open file, not to the descriptor: changing it would change it for
//!   QEMU. Reads here are non-blocking whatever it is (`RWF_NOWAIT`, or `poll` first where a tap does not know that).
//! - With IFF_VNET_HDR each frame has a virtio-net header in front, of the length that QEMU has set (10 or
//!   12 bytes; the last two of 12 are a buffer count that only the guest's ring has a use for). It sets it anew when a
//!   VM with a driver arrives, also for what waits in the ring, so it is asked for with each reading. The first 10
//!   say how the frame is to be segmented and which checksum is still to be filled in: a
//!   frame without them may be a super-packet with an unfinished checksum.
//! - A multi-queue tap has one open file and one ring for each queue. A flow stays on one queue, so the
//!   order within a flow is the order within a queue.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::packet::{VNET_HEADER, VnetHeader};
use super::tap::RingEmpty;
use super::{NetError, NetNs, Result, sys};
use crate::pidfd;

const IFF_NO_PI: u32 = 0x1000;
const IFF_VNET_HDR: u32 = 0x4000;

/// Length of the packet information that precedes everything else unless IFF_NO_PI is set.
const PACKET_INFO: usize = 4;

/// Room for one read: the longest super-packet with all headers, and more.
const READ_BUFFER: usize = 256 << 10;

/// A frame taken from a tap's ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapFrame {
    /// How it is to be segmented and checksummed; all zero on a tap without such headers.
    pub vnet_header: VnetHeader,
    /// The frame, from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// Duplicates of all descriptors that a process has of one tap.
#[derive(Debug)]
pub struct TapQueues {
    tap: String,
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    fd: OwnedFd,
    /// Bytes in front of each frame: packet information, then the virtio-net header, if there is one.
    packet_info: usize,
    has_vnet_header: bool,
}

impl TapQueues {
    /// Duplicates the descriptors `fds` of process `pid`, all of which must be of the tap `tap`.
    ///
    /// # Errors
    /// The process is gone (`already_gone()`), may not be traced (`not_permitted()`), the kernel is
    /// older than 5.6 (`unsupported()`), or a descriptor is not the tap's (any more).
    pub fn duplicate_fds(pid: i32, tap: &str, fds: &[i32]) -> Result<Self> {
        let failed = |operation, errno| {
            NetError::kernel(operation, format!("{tap} of process {pid}"), errno)
        };
        if fds.is_empty() {
            return Err(NetError::Missing {
                what: "open descriptor of tap",
                object: format!("{tap} in process {pid}"),
            });
        }
        let process =
            pidfd::open(pid).map_err(|errno| failed("open the process behind tap", errno))?;
        let mut queues = Vec::with_capacity(fds.len());
        for fd in fds {
            let fd = pidfd::getfd(process.as_fd(), *fd)
                .map_err(|errno| failed("duplicate a descriptor of tap", errno))?;
            queues.push(Queue::check(tap, fd)?);
        }
        Ok(Self {
            tap: tap.to_owned(),
            queues,
        })
    }

    /// The tap's name.
    #[must_use]
    pub fn tap(&self) -> &str {
        &self.tap
    }

    /// The number of queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Length in bytes of the virtio-net header in front of each frame now; 0 without.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn vnet_header_size(&self) -> Result<usize> {
        match self.queues.first() {
            Some(queue) => queue.vnet_header_size(&self.tap),
            None => Ok(0),
        }
    }

    /// The namespace that the tap is in now, whatever namespace the process is in.
    ///
    /// # Errors
    /// The kernel is older than 5.2, or we lack CAP_NET_ADMIN.
    pub fn netns(&self) -> Result<NetNs> {
        let missing = || NetError::Missing {
            what: "queue of tap",
            object: self.tap.clone(),
        };
        let queue = self.queues.first().ok_or_else(missing)?;
        let fd = sys::tun_netns(queue.fd.as_fd()).map_err(|errno| {
            NetError::kernel("find the network namespace of tap", &self.tap, errno)
        })?;
        NetNs::from_fd(fd, &format!("the namespace of {}", self.tap))
    }

    /// Whether all rings are empty now. `None`: something waits in at least one.
    ///
    /// # Errors
    /// The tap was deleted, or a queue was detached from it.
    pub fn empty(&self) -> Result<Option<RingEmpty>> {
        for queue in &self.queues {
            let mut entry = [PollFd::new(queue.fd.as_fd(), PollFlags::POLLIN)];
            poll(&mut entry, PollTimeout::ZERO)
                .map_err(|errno| NetError::kernel("poll tap", &self.tap, errno))?;
            let events = entry[0].revents().unwrap_or(PollFlags::empty());
            if events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Err(NetError::kernel("poll tap", &self.tap, Errno::ENODEV));
            }
            if events.contains(PollFlags::POLLIN) {
                return Ok(None);
            }
        }
        Ok(Some(RingEmpty::by_poll()))
    }

    /// Takes out everything that waits in the rings, queue by queue, oldest first, without waiting
    /// for more; at most `limit` frames.
    ///
    /// # Errors
    /// A read fails. What was read before is lost with it, so an error here is a loss to report;
    /// use [`TapQueues::read_into`] to keep what was read.
    pub fn read_unread(&self, limit: usize) -> Result<Vec<TapFrame>> {
        let mut frames = Vec::new();
        self.read_into(&mut frames, limit)?;
        Ok(frames)
    }

    /// Like [`TapQueues::read_unread`], appending to `frames`; on an error `frames` has all that was read
    /// before it. At most `limit` frames are appended.
    ///
    /// # Errors
    /// A read fails.
    pub fn read_into(&self, frames: &mut Vec<TapFrame>, limit: usize) -> Result<()> {
        let mut buffer = vec![0; READ_BUFFER];
        let mut room = limit;
        for queue in &self.queues {
            let vnet_header = queue.vnet_header_size(&self.tap)?;
            while room > 0 {
                let Some(frame) = queue.read(&self.tap, vnet_header, &mut buffer)? else {
                    break;
                };
                frames.push(frame);
                room -= 1;
            }
        }
        Ok(())
    }
}

impl Queue {
    fn check(tap: &str, fd: OwnedFd) -> Result<Self> {
        let failed = |operation, errno| NetError::kernel(operation, tap, errno);
        let (name, flags) = sys::tun_iff(fd.as_fd())
            .map_err(|errno| failed("ask a descriptor for the name of tap", errno))?;
        if name != tap {
            return Err(NetError::WrongKind {
                device: format!("the descriptor taken for tap {tap}"),
                found: format!("of {name}"),
                wanted: "of the VM's tap",
            });
        }
        let packet_info = if flags & IFF_NO_PI == 0 {
            PACKET_INFO
        } else {
            0
        };
        Ok(Self {
            fd,
            packet_info,
            has_vnet_header: flags & IFF_VNET_HDR != 0,
        })
    }

    fn vnet_header_size(&self, tap: &str) -> Result<usize> {
        if !self.has_vnet_header {
            return Ok(0);
        }
        sys::tun_vnet_header_size(self.fd.as_fd())
            .map_err(|errno| NetError::kernel("ask for the header size of tap", tap, errno))
    }

    fn read(&self, tap: &str, vnet_header: usize, buffer: &mut [u8]) -> Result<Option<TapFrame>> {
        let length = loop {
            match sys::read_nowait(self.fd.as_fd(), buffer) {
                Ok(length) => break length,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(NetError::kernel("read from tap", tap, errno)),
            }
        };
        if length == buffer.len() {
            return Err(NetError::FrameCut {
                tap: tap.to_owned(),
                limit: buffer.len(),
            });
        }
        let read = buffer.get(..length).unwrap_or_default();
        split(read, self.packet_info, vnet_header)
            .map(Some)
            .ok_or_else(|| NetError::Incomplete {
                operation: "read from tap",
                object: tap.to_owned(),
                missing: "a whole frame",
            })
    }
}

fn split(read: &[u8], packet_info: usize, vnet_header: usize) -> Option<TapFrame> {
    let (header, frame) = read.get(packet_info..)?.split_at_checked(vnet_header)?;
    let vnet_header = match header.first_chunk::<VNET_HEADER>() {
        Some(header) => VnetHeader(*header),
        None => VnetHeader::default(),
    };
    Some(TapFrame {
        vnet_header,
        frame: frame.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_each_length_are_taken_off() {
        let read: Vec<u8> = (0..20).collect();
        let ten = split(&read, 0, 10).unwrap();
        assert_eq!(ten.vnet_header.0.as_slice(), &read[..10]);
        assert_eq!(ten.frame, &read[10..]);
        let twelve = split(&read, 4, 12).unwrap();
        assert_eq!(twelve.vnet_header.0.as_slice(), &read[4..14]);
        assert_eq!(twelve.frame, &read[16..]);
        let none = split(&read, 0, 0).unwrap();
        assert_eq!(none.vnet_header, VnetHeader::default());
        assert_eq!(none.frame, read);
        assert_eq!(split(&read[..8], 0, 10), None);
    }

    #[test]
    fn no_descriptors_is_an_error_and_not_an_empty_ring() {
        assert!(matches!(
            TapQueues::duplicate_fds(1, "tap0", &[]),
            Err(NetError::Missing { .. })
        ));
    }
}
