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

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// Nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// Keeps the calling thread on the CPU that it runs on.
///
/// A network card brings all packets of a flow in by one CPU (receive side scaling, Documentation/networking/scaling.rst). Here it is the
/// sender's: each CPU has a queue of its own (`enqueue_to_backlog()`, net/core/dev.c), and where ksoftirqd has to wait for its turn, what
/// is sent from another CPU overtakes what waits there.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn stay_on_one_cpu() -> Result<()> {
    let mut this = CpuSet::new();
    this.set(sched_getcpu().context("ask which CPU this is")?)
        .context("name this CPU")?;
    sched_setaffinity(Pid::from_raw(0), &this).context("stay on this CPU")
}
