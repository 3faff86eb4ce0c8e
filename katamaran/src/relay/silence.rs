//! Tells from a connection's own state that its path has gone silent.
//!
//! The kernel gives such a connection up after a quarter of an hour (`net.ipv4.tcp_retries2`, tcp(7)).
//! `TCP_USER_TIMEOUT` would do it sooner, but ends those, too, whose peer acknowledges and reads nothing for a while
//! (`tcp_probe_timer()`, net/ipv4/tcp_timer.c): a destination with a slow disk.

use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use crate::deadline;

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

/// Waits until the path has been silent for [`deadline::STREAM_SILENCE`].
///
/// # Cancel safety
/// Cancel safe.
pub(super) async fn silent(socket: &impl AsFd) {
    let mut silence = Silence::default();
    loop {
        match silence.look(socket) {
            Ok(span) if span >= deadline::STREAM_SILENCE => return,
            Ok(_) => tokio::time::sleep(deadline::STREAM_LOOK).await,
            // A socket that can't be asked is judged by its end alone.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Watches one connection.
#[derive(Debug, Default)]
struct Silence {
    /// When the peer was first seen not to answer.
    since: Option<Instant>,
}

impl Silence {
    /// For how long the peer's kernel has acknowledged nothing though it was asked again and again: by data sent once
    /// more, or by probes of a closed window. Zero while it answers, and while there is nothing to be answered.
    ///
    /// # Errors
    /// It is no TCP socket.
    fn look(&mut self, socket: &impl AsFd) -> Result<Duration, Errno> {
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    use super::super::{Governor, RelayError, SourceRelay, connector};
    use super::*;
    use crate::stream::BoxStream;

    /// Has the kernel drop whatever comes to `socket`: no segment is acknowledged any more.
    fn hears_nothing(socket: &TcpStream) {
        const RETURN: u16 = 0x06; // BPF_RET | BPF_K: so many bytes of it are let through.
        let mut none = [libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        let program = libc::sock_fprog {
            len: 1,
            filter: none.as_mut_ptr(),
        };
        // SAFETY: The program is as long as it says, and the kernel copies it.
        let attached = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                libc::socklen_t::try_from(size_of_val(&program)).unwrap(),
            )
        };
        Errno::result(attached).unwrap();
    }

    #[tokio::test]
    async fn a_stream_whose_path_goes_silent_fails_though_nobody_cuts_it() {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = port.local_addr().unwrap();
        let dial = connector(move |_| async move {
            Ok(Box::new(TcpStream::connect(address).await?) as BoxStream)
        });
        let relay = SourceRelay::start(
            &directory.path().join("s"),
            "ram.sock",
            dial,
            Governor::default(),
        )
        .unwrap();
        let mut qemu = UnixStream::connect(relay.path()).await.unwrap();
        let (far, _) = port.accept().await.unwrap();
        hears_nothing(&far);
        qemu.write_all(&[0; 1000]).await.unwrap();

        let limit = deadline::STREAM_SILENCE * 6;
        let error = tokio::time::timeout(limit, relay.status().failed()).await;
        let error = error.expect("it is noticed");
        assert!(
            matches!(error, RelayError::Silent { stream: 0, .. }),
            "{error}"
        );
        relay.shutdown().await;
    }
}
