//! Moves the bytes of a stream between two sockets inside the kernel, as fast as they come: no pace, no copy.
//!
//! Through a pipe, since `splice(2)` wants one. Measured with a mirror of 1 GiB, a relay that copies takes four
//! times the processor time, which is missing to both QEMUs where they share the processors.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::pipe2;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::spawn_blocking;

use super::error::{Direction, RelayError};
use super::status::RelayStatus;

/// Room in the pipe and in the socket towards QEMU: several requests of a mirror, 1 MiB each. With the 208 KiB
/// that a unix socket has by default, QEMU and the relay wake each other several times for each.
const ROOM: usize = 4 << 20;

/// What a user without privileges may give a pipe (`/proc/sys/fs/pipe-max-size`), and enough for one request.
const PIPE: i32 = 1 << 20;

/// Joins `source_side` and `destination_side` until both directions have ended.
///
/// # Errors
/// The first failure of either direction. Both connections are cut on return.
///
/// # Cancel safety
/// Dropping the future cuts the stream.
pub(super) async fn join(
    stream: u32,
    source_side: TcpStream,
    destination_side: UnixStream,
    status: &RelayStatus,
) -> Result<(), RelayError> {
    let failed = |source: io::Error| RelayError::Connect {
        stream,
        source: Arc::new(source),
    };
    // What is refused only costs time.
    if let Err(error) = setsockopt(&destination_side, sockopt::SndBufForce, &ROOM) {
        tracing::debug!(%error, "a relay has a socket with a small buffer");
    }
    let source_side = source_side.into_std().map_err(failed)?;
    let destination_side = destination_side.into_std().map_err(failed)?;
    source_side.set_nonblocking(false).map_err(failed)?;
    destination_side.set_nonblocking(false).map_err(failed)?;
    let ends = Ends(Arc::new((source_side, destination_side)));
    let carry = |direction| {
        let (ends, status) = (Arc::clone(&ends.0), status.clone());
        let thread = spawn_blocking(move || {
            let (tcp, unix) = &*ends;
            match direction {
                Direction::ToDestination => {
                    carry(stream, direction, tcp, unix, &status)?;
                    unix.shutdown(Shutdown::Write)
                }
                Direction::ToSource => {
                    carry(stream, direction, unix, tcp, &status)?;
                    tcp.shutdown(Shutdown::Write)
                }
            }
            .map_err(|source| write_failed(stream, direction, source))
        });
        async move {
            match thread.await {
                Ok(carried) => carried,
                Err(panicked) => Err(write_failed(stream, direction, io::Error::other(panicked))),
            }
        }
    };
    tokio::try_join!(carry(Direction::ToDestination), carry(Direction::ToSource))?;
    Ok(())
}

/// Both sockets. Threads that wait in them are woken by the end of this.
struct Ends(Arc<(std::net::TcpStream, StdUnixStream)>);

impl Drop for Ends {
    fn drop(&mut self) {
        // Fails on what is closed already.
        self.0.0.shutdown(Shutdown::Both).ok();
        self.0.1.shutdown(Shutdown::Both).ok();
    }
}

/// Until `from` ends.
fn carry(
    stream: u32,
    direction: Direction,
    from: &impl AsFd,
    to: &impl AsFd,
    status: &RelayStatus,
) -> Result<(), RelayError> {
    let read_failed = |source: Errno| RelayError::Read {
        stream,
        direction,
        source: Arc::new(source.into()),
    };
    let (outlet, inlet) = pipe2(OFlag::O_CLOEXEC).map_err(read_failed)?;
    if let Err(error) = fcntl(&inlet, FcntlArg::F_SETPIPE_SZ(PIPE)) {
        tracing::debug!(%error, "a relay has a small pipe");
    }
    loop {
        let mut waiting = moved(from, &inlet, PIPE.unsigned_abs() as usize).map_err(read_failed)?;
        if waiting == 0 {
            return Ok(());
        }
        while waiting > 0 {
            let sent = moved(&outlet, to, waiting)
                .and_then(|sent| {
                    if sent == 0 {
                        Err(Errno::EPIPE)
                    } else {
                        Ok(sent)
                    }
                })
                .map_err(|source| write_failed(stream, direction, source.into()))?;
            status.count(direction, sent);
            waiting -= sent;
        }
    }
}

fn moved(from: &impl AsFd, to: &impl AsFd, most: usize) -> Result<usize, Errno> {
    loop {
        match splice(from, None, to, None, most, SpliceFFlags::SPLICE_F_MOVE) {
            Err(Errno::EINTR) => {}
            moved => return moved,
        }
    }
}

fn write_failed(stream: u32, direction: Direction, source: io::Error) -> RelayError {
    RelayError::Write {
        stream,
        direction,
        source: Arc::new(source),
    }
}
