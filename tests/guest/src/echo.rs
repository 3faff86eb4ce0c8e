//! The echo servers: what comes is sent back, byte for byte.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

const ECHO_PORT: u16 = 7;

/// What the echo servers have done since boot.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) udp_received: AtomicU64,
    /// Datagrams that came after one of the same run with a higher number.
    pub(crate) udp_late: AtomicU64,
    pub(crate) udp_send_errors: AtomicU64,
    pub(crate) tcp_bytes: AtomicU64,
}

/// With one address, `::`, one socket is for both families: an IPv4 peer shows as a mapped address.
pub(crate) fn start(addresses: &[String]) -> io::Result<Arc<Counters>> {
    let counters = Arc::new(Counters::default());
    for address in addresses {
        let socket = UdpSocket::bind((address.as_str(), ECHO_PORT))?;
        let udp = Arc::clone(&counters);
        thread::spawn(move || echo_datagrams(&socket, &udp));
    }
    let listener = TcpListener::bind(("::", ECHO_PORT))?;
    let tcp = Arc::clone(&counters);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counters = Arc::clone(&tcp);
            thread::spawn(move || echo_stream(stream, &counters));
        }
    });
    Ok(counters)
}

/// The order of numbered datagrams: the run and the number, 64 bits each, are in front.
#[derive(Debug, Default)]
struct Order {
    /// Each run, and its highest number so far.
    runs: Vec<(u64, u64)>,
}

impl Order {
    /// Whether a datagram comes after one with a higher number.
    fn is_late(&mut self, datagram: &[u8]) -> bool {
        let Some((head, rest)) = datagram.split_first_chunk::<8>() else {
            return false;
        };
        let Some(number) = rest.first_chunk::<8>() else {
            return false;
        };
        let (run, number) = (u64::from_be_bytes(*head), u64::from_be_bytes(*number));
        match self.runs.iter_mut().find(|(known, _)| *known == run) {
            Some((_, highest)) if number < *highest => true,
            Some((_, highest)) => {
                *highest = number;
                false
            }
            None => {
                self.runs.push((run, number));
                false
            }
        }
    }
}

fn echo_datagrams(socket: &UdpSocket, counters: &Counters) {
    let mut order = Order::default();
    let mut buffer = vec![0; 65536];
    loop {
        // An error here is an ICMP report about an earlier reply; the socket goes on.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        counters.udp_received.fetch_add(1, Relaxed);
        let late = order.is_late(&buffer[..length]);
        counters.udp_late.fetch_add(late.into(), Relaxed);
        if socket.send_to(&buffer[..length], peer).is_err() {
            counters.udp_send_errors.fetch_add(1, Relaxed);
        }
    }
}

fn echo_stream(mut stream: TcpStream, counters: &Counters) {
    drop(stream.set_nodelay(true));
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
        counters.tcp_bytes.fetch_add(length as u64, Relaxed);
    }
}
