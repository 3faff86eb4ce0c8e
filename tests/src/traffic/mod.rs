//! Traffic from the client through the guest's echo, with an account of every packet and byte.
//!
//! All times are the machine's wall clock in nanoseconds since the epoch, as QEMU's events are, so
//! that a gap can be set beside STOP and RESUME. Arrivals are stamped by the kernel: a receiver that
//! was not scheduled for a while shows no gap of its own making.

pub mod account;
mod acks;
mod announce;
pub(crate) mod frames;
mod packet_socket;
mod silence;
mod tcp;
mod udp;

pub use self::account::UdpResult;
pub use self::acks::{AckCollector, AckRecord};
pub use self::announce::Announcements;
pub use self::silence::{Overtaken, Record, Silence};
pub use self::tcp::{TcpLoad, TcpResult, TcpTraffic};
pub use self::udp::{Mark, Sent, UdpLoad, UdpTraffic};

use std::time::SystemTime;

/// Nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}
