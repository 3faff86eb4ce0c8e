//! A packet socket on a link: records what leaves there and repeats it.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use crate::netns::Netns;

pub(crate) struct Wire {
    socket: UdpSocket,
}

impl Wire {
    pub(crate) fn open(netns: &Netns, device: &str) -> Self {
        let ifindex = i32::try_from(netns.ifindex(device)).unwrap();
        let every = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let fd = netns.run(|| {
            // SAFETY: takes no pointers; the result is checked.
            let fd = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                    i32::from(every),
                )
            };
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: just opened, owned by nobody else.
            unsafe { OwnedFd::from_raw_fd(fd) }
        });
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = every;
        address.sll_ifindex = ifindex;
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
        // SAFETY: an open socket, and an address that outlives the call.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        // Only for its read, write and time-out, which are the same for any datagram socket.
        let socket = UdpSocket::from(fd);
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self { socket }
    }

    /// Records frames until `count` of them are wanted ones.
    pub(crate) fn record(&self, count: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65_536];
        while frames.len() < count {
            let length = self.socket.recv(&mut buffer).unwrap();
            if wanted(&buffer[..length]) {
                frames.push(buffer[..length].to_vec());
            }
        }
        frames
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: an open socket and a frame that outlives the call.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()));
    }
}
