//! The control port: one command per datagram, one line back.
//!
//! | command | effect |
//! |---|---|
//! | `dirty RATE SIZE` | dirty RATE MB/s over SIZE MiB of memory; RATE 0 stops |
//! | `disk RATE BLOCKS DRIVES PORT` | write RATE numbered 4 KiB records a second, or as many as can be (`max`), over the first BLOCKS blocks of each of DRIVES drives, and report what is acknowledged to the sender's PORT; `disk 0` stops |
//! | `status` | counters, as `name=value` words |

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;

use crate::dirty::Dirtier;
use crate::disk::Disk;
use crate::echo::Counters;

const CONTROL_PORT: u16 = 8;

/// Answers commands for ever.
pub(crate) fn serve(dirtier: &Dirtier, disk: &Disk, counters: &Counters) -> io::Result<()> {
    let socket = UdpSocket::bind(("::", CONTROL_PORT))?;
    let mut buffer = [0; 512];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let command = String::from_utf8_lossy(&buffer[..length]);
        let reply = answer(&command, peer, dirtier, disk, counters);
        drop(socket.send_to(reply.as_bytes(), peer));
    }
}

fn answer(
    command: &str,
    peer: SocketAddr,
    dirtier: &Dirtier,
    disk: &Disk,
    counters: &Counters,
) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = |at: usize| match words.get(at) {
        Some(&"max") => Some(u64::MAX),
        word => word.and_then(|word| word.parse().ok()),
    };
    match (words.first().copied(), number(1), number(2)) {
        (Some("dirty"), Some(rate), Some(size)) => {
            dirtier.set(rate, size);
            "ok".to_owned()
        }
        (Some("disk"), Some(0), _) => {
            disk.set(0, 0, 0);
            "ok".to_owned()
        }
        (Some("disk"), Some(rate), Some(blocks)) => {
            let port = number(4).and_then(|port| u16::try_from(port).ok());
            let (Some(drives), Some(port)) = (number(3), port) else {
                return format!("error: no drives or no port in {command:?}");
            };
            disk.report_to(SocketAddr::new(peer.ip(), port));
            disk.set(rate, blocks, drives);
            "ok".to_owned()
        }
        (Some("status"), _, _) => format!(
            "udp_received={} udp_late={} udp_dropped={} udp_send_errors={} tcp_bytes={} pages_dirtied={} {}",
            counters.udp_received.load(Relaxed),
            counters.udp_late.load(Relaxed),
            udp_dropped(),
            counters.udp_send_errors.load(Relaxed),
            counters.tcp_bytes.load(Relaxed),
            dirtier.pages_dirtied(),
            disk.status(),
        ),
        _ => format!("error: unknown command {command:?}"),
    }
}

/// Datagrams that reached the guest and found its socket full, and answers that found the queue of its device full: errors
/// of both families.
fn udp_dropped() -> u64 {
    let v4 = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut udp = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let names = udp.next().unwrap_or_default().split_whitespace();
    let values = udp.next().unwrap_or_default().split_whitespace();
    let of_v4 = names
        .zip(values)
        .filter(|(name, _)| matches!(*name, "InErrors" | "SndbufErrors"));
    let v6 = std::fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
    let of_v6 = v6.lines().filter_map(|line| {
        let errors = ["Udp6InErrors", "Udp6SndbufErrors"];
        errors.iter().find_map(|name| line.strip_prefix(name))
    });
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    of_v4.map(|(_, value)| number(value)).sum::<u64>() + of_v6.map(number).sum::<u64>()
}
