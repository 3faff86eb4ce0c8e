//! Tells from a connection's own state that its path has gone silent.
//!
//! The kernel gives such a connection up after a quarter of an hour (`net.ipv4.tcp_retries2`, tcp(7)).
//! `TCP_USER_TIMEOUT` would do it sooner, but ends those, too, whose peer acknowledges and reads nothing for a while
//! (`tcp_probe_timer()`, net/ipv4/tcp_timer.c): a destination with a slow disk.

use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

/// The beginning of `struct tcp_info` (include/uapi/linux/tcp.h); the kernel fills in as much as is asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff_options_and_scales: [u8; 4],
    times_sizes_and_counts: [u32; 9],
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_received: u32,
    last_ack_received: u32,
}

impl TcpInfo {
    fn of(socket: &impl AsFd) -> Result<Self, Errno> {
        let mut info = Self::default();
        let size = size_of::<Self>();
        let mut length = libc::socklen_t::try_from(size).map_err(|_too_long| Errno::EINVAL)?;
        // SAFETY: `info` is as long as the kernel is told, plain numbers, and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        match usize::try_from(length) {
            Ok(filled) if filled == size => Ok(info),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }
}

/// One packet may be lost twice in a row.
const ASKED_AGAIN: u8 = 3;

/// Watches one connection.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// When the peer was first seen not to answer.
    since: Option<Instant>,
}

impl Silence {
    /// For how long the peer's kernel has acknowledged nothing though it was asked again and again: by data sent once
    /// more, or by probes of a closed window. Zero while it answers, and while there is nothing to be answered.
    ///
    /// # Errors
    /// It is no TCP socket.
    pub(super) fn look(&mut self, socket: &impl AsFd) -> Result<Duration, Errno> {
        let info = TcpInfo::of(socket)?;
        if info.retransmits.max(info.probes) < ASKED_AGAIN {
            self.since = None;
            return Ok(Duration::ZERO);
        }
        let seen = self.since.get_or_insert_with(Instant::now).elapsed();
        // Between two looks it may have answered once; before the first, all may have been quiet for hours.
        Ok(seen.min(Duration::from_millis(info.last_ack_received.into())))
    }
}
