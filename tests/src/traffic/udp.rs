//! Numbered UDP packets at an even rate.
//!
//! ```text
//!   0      8       16      24
//!   | run  | number| time  | padding: the number's low byte, repeated |
//! ```

use std::collections::HashSet;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

use super::account::{Arrival, UdpResult, settle};
use super::{now_ns, stay_on_one_cpu};
use crate::lab::Netns;

/// Room for the header.
const HEADER: usize = 24;
/// A sender that is later than this gives up the debt: a burst would be a test of the burst.
const LONGEST_DEBT_NS: i64 = 5_000_000;
/// After the last arrival, how long more are waited for.
const SILENCE: Duration = Duration::from_secs(2);
const RECEIVE_BUFFER: usize = 32 << 20;

/// Makes some of the packets different, for a rule in the way to recognise.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// Every how many packets.
    pub every: u64,
    /// The DSCP of those; all others have 0.
    pub dscp: u8,
    /// Whether it begins with the first packet, or when [`UdpTraffic::set_marking`] says so.
    pub at_once: bool,
}

/// What to send.
#[derive(Debug, Clone)]
pub struct UdpLoad {
    /// An echo server.
    pub target: SocketAddr,
    /// Packets per second.
    pub rate: u32,
    /// Bytes of UDP payload, 24 or more.
    pub size: usize,
    /// Which packets are marked, if any.
    pub mark: Option<Mark>,
}

impl UdpLoad {
    /// `rate` packets a second of 100 bytes to the guest's echo at `address`.
    #[must_use]
    pub fn new(address: impl Into<IpAddr>, rate: u32) -> Self {
        let target = SocketAddr::new(address.into(), crate::lab::ECHO_PORT);
        Self {
            target,
            rate,
            size: 100,
            mark: None,
        }
    }
}

/// What the two threads tell each other and the owner.
#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    marking: AtomicBool,
    /// Packets still to be sent at once.
    burst: AtomicU64,
    sender_done: AtomicBool,
    sent: AtomicU64,
    refused: AtomicU64,
    received: AtomicU64,
}

/// How many packets a generator has sent.
#[derive(Debug, Clone)]
pub struct Sent(Arc<Progress>);

impl Sent {
    /// Until now.
    #[must_use]
    pub fn count(&self) -> i64 {
        i64::try_from(self.0.sent.load(Relaxed)).unwrap_or(i64::MAX)
    }
}

#[derive(Debug)]
struct Record {
    at_ns: Vec<u64>,
    errors: u64,
}

#[derive(Debug)]
struct Received {
    arrivals: Vec<Arrival>,
    corrupted: u64,
}

/// A generator at work.
#[derive(Debug)]
pub struct UdpTraffic {
    target: SocketAddr,
    progress: Arc<Progress>,
    sender: Option<JoinHandle<Result<Record>>>,
    receiver: Option<JoinHandle<Result<Received>>>,
}

impl UdpTraffic {
    /// Starts sending from `netns`.
    ///
    /// # Errors
    ///
    /// When no socket can be had there, or the load makes no sense.
    pub fn start(netns: &Netns, load: UdpLoad) -> Result<Self> {
        if load.size < HEADER || load.rate == 0 {
            bail!("a load needs {HEADER} bytes and a rate: {load:?}");
        }
        // A socket belongs to the namespace it was made in, whoever uses it.
        let socket = netns.run(|| open(&load))??;
        let (run, target) = (now_ns(), load.target);
        let progress = Arc::new(Progress {
            marking: AtomicBool::new(load.mark.is_some_and(|mark| mark.at_once)),
            ..Progress::default()
        });
        let for_receiver = (socket.try_clone().context("clone the socket")?, load.size);
        let sender = {
            let progress = Arc::clone(&progress);
            thread::spawn(move || {
                let sent = send(&socket, &load, run, &progress);
                progress.sender_done.store(true, Relaxed);
                sent
            })
        };
        let receiver = {
            let progress = Arc::clone(&progress);
            thread::spawn(move || receive(&for_receiver.0, for_receiver.1, run, &progress))
        };
        Ok(Self {
            target,
            progress,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// Has packets marked from now on, or no more.
    pub fn set_marking(&self, on: bool) {
        self.progress.marking.store(on, Relaxed);
    }

    /// Has so many packets sent at once, beside those that are due. They are numbered like all others.
    pub fn burst(&self, packets: u64) {
        self.progress.burst.fetch_add(packets, Relaxed);
    }

    /// What tells how many packets have been sent, to whoever wants to know.
    #[must_use]
    pub fn sent_so_far(&self) -> Sent {
        Sent(Arc::clone(&self.progress))
    }

    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.progress.sent.load(Relaxed)
    }

    /// Packets that have come back so far, copies included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.progress.received.load(Relaxed)
    }

    /// Waits until `count` more packets have come back.
    ///
    /// # Errors
    ///
    /// When they have not at the deadline.
    pub fn wait_for_more(&self, count: u64, deadline: Instant) -> Result<()> {
        let (received, sent) = (self.received(), self.sent());
        while self.received() < received + count {
            if Instant::now() >= deadline {
                bail!(
                    "of {} packets to {} came {} back, and {} of the last {} in time; the kernel took {} not at all",
                    self.sent(),
                    self.target,
                    self.received(),
                    self.received() - received,
                    self.sent() - sent,
                    self.progress.refused.load(Relaxed)
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops sending, waits until all is answered or nothing has come for 2 s, and settles.
    ///
    /// # Errors
    ///
    /// When a socket failed on the way.
    pub fn stop(mut self) -> Result<UdpResult> {
        self.progress.stop.store(true, Relaxed);
        let sent = join(self.sender.take())?;
        let received = join(self.receiver.take())?;
        let mut result = settle(&sent.at_ns, &received.arrivals);
        result.corrupted += received.corrupted;
        result.send_errors = sent.errors;
        Ok(result)
    }
}

impl Drop for UdpTraffic {
    fn drop(&mut self) {
        // The threads end by themselves; a result is no longer wanted.
        self.progress.stop.store(true, Relaxed);
    }
}

fn join<T>(handle: Option<JoinHandle<Result<T>>>) -> Result<T> {
    let handle = handle.expect("a handle is only taken by stop(), which consumes the traffic");
    handle
        .join()
        .map_err(|_panic| anyhow!("a traffic thread panicked"))?
}

fn open(load: &UdpLoad) -> Result<UdpSocket> {
    let any: IpAddr = match load.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Not connected: an ICMP report must not cost a packet that could be sent.
    let socket = UdpSocket::bind((any, 0)).context("open a UDP socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("set SO_RCVBUFFORCE")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("set SO_TIMESTAMPNS")?;
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .context("set SO_RCVTIMEO")?;
    Ok(socket)
}

fn send(socket: &UdpSocket, load: &UdpLoad, run: u64, progress: &Progress) -> Result<Record> {
    // The default slack of 50 us is a quarter of the interval at 5,000 packets a second.
    prctl::set_timerslack(1).context("set the timer slack")?;
    stay_on_one_cpu()?;
    let interval_ns = 1_000_000_000 / i64::from(load.rate);
    let target = SockaddrStorage::from(load.target);
    let mut sent = Record {
        at_ns: Vec::new(),
        errors: 0,
    };
    let mut packet = vec![0; load.size];
    let mut due_ns = monotonic_ns()?;
    while !progress.stop.load(Relaxed) {
        let at_once = progress.burst.load(Relaxed) > 0;
        if at_once {
            progress.burst.fetch_sub(1, Relaxed);
        } else {
            sleep_until(due_ns)?;
        }
        let number = sent.at_ns.len() as u64;
        let at_ns = now_ns();
        fill(&mut packet, run, number, at_ns);
        let tos = load
            .mark
            .filter(|mark| {
                progress.marking.load(Relaxed) && number.is_multiple_of(mark.every.max(1))
            })
            .map(|mark| mark.dscp << 2);
        let class = tos.map(i32::from);
        let control: Vec<ControlMessage<'_>> = match (&tos, &class, load.target) {
            (Some(tos), _, SocketAddr::V4(_)) => vec![ControlMessage::Ipv4Tos(tos)],
            (_, Some(class), SocketAddr::V6(_)) => vec![ControlMessage::Ipv6TClass(class)],
            _ => Vec::new(),
        };
        let part = [IoSlice::new(&packet)];
        match sendmsg(
            socket.as_raw_fd(),
            &part,
            &control,
            MsgFlags::empty(),
            Some(&target),
        ) {
            Ok(_) => {
                sent.at_ns.push(at_ns);
                progress.sent.fetch_add(1, Relaxed);
            }
            Err(_) => {
                sent.errors += 1;
                progress.refused.fetch_add(1, Relaxed);
            }
        }
        if !at_once {
            due_ns += interval_ns;
        }
        let late_ns = monotonic_ns()? - due_ns;
        if late_ns > LONGEST_DEBT_NS {
            due_ns += late_ns;
        }
    }
    Ok(sent)
}

fn receive(socket: &UdpSocket, size: usize, run: u64, progress: &Progress) -> Result<Received> {
    let mut received = Received {
        arrivals: Vec::new(),
        corrupted: 0,
    };
    let mut buffer = vec![0; 65536];
    let mut expected = vec![0; size];
    let mut space = nix::cmsg_space!(libc::timespec);
    // A packet that comes twice does not stand for another one that is still to come.
    let mut answered = HashSet::new();
    let mut quiet_since = Instant::now();
    loop {
        if progress.sender_done.load(Relaxed) {
            let all = answered.len() as u64 >= progress.sent.load(Relaxed);
            if all || quiet_since.elapsed() >= SILENCE {
                return Ok(received);
            }
        } else {
            quiet_since = Instant::now();
        }
        let Some((length, stamp)) = receive_one(socket, &mut buffer, &mut space)? else {
            continue;
        };
        quiet_since = Instant::now();
        let packet = &buffer[..length];
        let word = |at: usize| {
            packet
                .get(at..at + 8)
                .map(|w| u64::from_be_bytes(to_array(w)))
        };
        match (word(0), word(8), word(16)) {
            (Some(token), Some(number), Some(at_ns)) if token == run => {
                fill(&mut expected, run, number, at_ns);
                if packet == expected {
                    answered.insert(number);
                    received.arrivals.push(Arrival {
                        number,
                        at_ns: stamp,
                    });
                    progress.received.fetch_add(1, Relaxed);
                } else {
                    received.corrupted += 1;
                }
            }
            _ => received.corrupted += 1,
        }
    }
}

fn to_array(word: &[u8]) -> [u8; 8] {
    word.try_into()
        .expect("the slice was taken with this length")
}

/// One packet: its length and its time of arrival; none if there was none within the socket's time.
/// `space` has room for the time, a `timespec`.
pub(super) fn receive_one(
    socket: &UdpSocket,
    buffer: &mut [u8],
    space: &mut [u8],
) -> Result<Option<(usize, u64)>> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(space),
        MsgFlags::empty(),
    );
    match message {
        Ok(message) => Ok(Some((message.bytes, arrival_ns(message.cmsgs()?)))),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(err) => Err(err).context("receive"),
    }
}

/// The kernel's own time of arrival.
fn arrival_ns<'a>(mut messages: impl Iterator<Item = ControlMessageOwned> + 'a) -> u64 {
    let stamp = messages.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(stamp),
        _ => None,
    });
    stamp.map_or_else(now_ns, |stamp| u64::try_from(ns(stamp)).unwrap_or(0))
}

fn fill(packet: &mut [u8], run: u64, number: u64, at_ns: u64) {
    packet[0..8].copy_from_slice(&run.to_be_bytes());
    packet[8..16].copy_from_slice(&number.to_be_bytes());
    packet[16..24].copy_from_slice(&at_ns.to_be_bytes());
    packet[HEADER..].fill(number.to_be_bytes()[7]);
}

fn ns(time: TimeSpec) -> i64 {
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

fn monotonic_ns() -> Result<i64> {
    Ok(ns(
        clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?
    ))
}

fn sleep_until(due_ns: i64) -> Result<()> {
    let due = TimeSpec::new(due_ns / 1_000_000_000, due_ns % 1_000_000_000);
    loop {
        let flags = ClockNanosleepFlags::TIMER_ABSTIME;
        match clock_nanosleep(ClockId::CLOCK_MONOTONIC, flags, &due) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(err) => return Err(err).context("sleep"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_comes_twice_does_not_end_the_wait_for_another() {
        const SIZE: usize = 64;
        const RUN: u64 = 7;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in [0, 0, 1] {
            let mut packet = vec![0; SIZE];
            fill(&mut packet, RUN, number, 1);
            guest
                .send_to(&packet, socket.local_addr().unwrap())
                .unwrap();
        }
        let progress = Progress::default();
        progress.sent.store(2, Relaxed);
        progress.sender_done.store(true, Relaxed);
        let received = receive(&socket, SIZE, RUN, &progress).unwrap();
        let numbers: Vec<u64> = received.arrivals.iter().map(|a| a.number).collect();
        assert_eq!(numbers, [0, 0, 1]);
    }
}
