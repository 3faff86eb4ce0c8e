//! Numbered packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::netns::Netns;

pub(crate) const PORT: u16 = 7777;

/// Sends numbered datagrams from a namespace.
pub(crate) struct Sender {
    socket: UdpSocket,
    target: SocketAddr,
    next: u32,
}

impl Sender {
    pub(crate) fn new(netns: &Netns, target: &str) -> Self {
        let target = SocketAddr::new(target.parse::<IpAddr>().unwrap(), PORT);
        let any = if target.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = netns.run(|| UdpSocket::bind(any).unwrap());
        Self {
            socket,
            target,
            next: 0,
        }
    }

    /// Sends `count` datagrams of `size` bytes (at least 4).
    pub(crate) fn send(&mut self, count: u32, size: usize) {
        let mut payload = vec![0x5a; size];
        for _ in 0..count {
            payload[..4].copy_from_slice(&self.next.to_be_bytes());
            self.socket.send_to(&payload, self.target).unwrap();
            self.next += 1;
        }
    }

    /// Sends `count` datagrams as one super-packet; the last is `last` bytes, the others `size`.
    pub(crate) fn send_super(&mut self, count: u32, size: usize, last: usize) {
        let segment = i32::try_from(size).unwrap();
        set_option(&self.socket, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
        let mut payload = Vec::new();
        for index in 0..count {
            let end = payload.len() + if index + 1 == count { last } else { size };
            payload.extend(self.next.to_be_bytes());
            payload.resize(end, 0x5a);
            self.next += 1;
        }
        self.socket.send_to(&payload, self.target).unwrap();
    }

    /// Sets "don't fragment" and ignores what the path is said to carry.
    pub(crate) fn forbid_fragments(&self) {
        let (level, option) = if self.target.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        };
        set_option(&self.socket, level, option, libc::IP_PMTUDISC_PROBE);
    }
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) {
    let size = libc::socklen_t::try_from(size_of::<i32>()).unwrap();
    // SAFETY: an open socket, and a value of the given size that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Receives numbered datagrams in a namespace: number -> how often.
pub(crate) struct Receiver {
    seen: Arc<Mutex<BTreeMap<u32, u32>>>,
    stop: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub(crate) fn new(netns: &Netns) -> Self {
        let socket = netns.run(|| UdpSocket::bind(("::", PORT)).unwrap());
        setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
        // Bounds how long stopping takes.
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let seen: Arc<Mutex<BTreeMap<u32, u32>>> = Arc::default();
        let stop: Arc<Mutex<bool>> = Arc::default();
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0u8; 65_536];
            while !*stopped.lock().unwrap() {
                if let Ok(length) = socket.recv(&mut buffer)
                    && let Some(number) = buffer[..length].first_chunk::<4>()
                {
                    *noted
                        .lock()
                        .unwrap()
                        .entry(u32::from_be_bytes(*number))
                        .or_default() += 1;
                }
            }
        });
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn received(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        self.seen.lock().unwrap().contains_key(&number)
    }

    /// Each of `0..sent` exactly once.
    #[track_caller]
    pub(crate) fn assert_all_once(&self, sent: u32) {
        let seen = self.seen.lock().unwrap();
        let lost: Vec<u32> = (0..sent)
            .filter(|number| !seen.contains_key(number))
            .collect();
        let again: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
        assert!(
            lost.is_empty() && again.is_empty(),
            "lost {lost:?}, again {again:?}"
        );
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        *self.stop.lock().unwrap() = true;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}
