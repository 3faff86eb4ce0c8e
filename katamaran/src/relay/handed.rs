//! Streams that QEMU does not open, but is handed: sockets that are connected to the destination already.
//!
//! No byte of theirs comes through here. That they end or are not answered any more is seen, and they can be cut,
//! through a second descriptor of the same socket.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{self, Shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::connector::{Connector, connect};
use super::error::RelayError;
use super::silence::silent;
use super::status::RelayStatus;
use super::tasks::Tasks;
use crate::stream::into_tcp;

/// Connections for QEMU. Nobody but who is handed one can get at it: there is no socket to connect to.
#[must_use = "streams are cut when this is dropped"]
pub struct HandedStreams {
    connector: Connector,
    opened: u32,
    status: RelayStatus,
    tasks: Tasks,
}

impl HandedStreams {
    /// No stream yet.
    pub fn new(connector: Connector) -> Self {
        Self {
            connector,
            opened: 0,
            status: RelayStatus::new(),
            tasks: Tasks::default(),
        }
    }

    /// Connects the next stream to the destination: a socket for QEMU, which doesn't block.
    ///
    /// # Errors
    /// No connection in time, or one that is not plain TCP.
    ///
    /// # Cancel safety
    /// Dropping the future opens no stream.
    pub async fn open(&mut self) -> Result<OwnedFd, RelayError> {
        let stream = self.opened;
        let failed = |source| RelayError::Connect {
            stream,
            source: Arc::new(source),
        };
        let connected = connect(stream, (self.connector)(stream)).await?;
        let socket = into_tcp(connected)
            .map_err(|_other| RelayError::NotASocket { stream })?
            .into_std()
            .map_err(failed)?;
        let ours = socket.try_clone().map_err(failed)?;
        // Before QEMU may use it, so that no end is missed.
        let held = Held(TcpStream::from_std(ours).map_err(failed)?);
        self.opened += 1;
        let (status, open) = (self.status.clone(), self.status.open());
        self.tasks.spawn(async move {
            let _open = open;
            tokio::select! {
                () = held.closed() => tracing::debug!(stream, "a stream that QEMU was handed is over"),
                () = silent(&held.0) => status.fail(RelayError::silent(stream)),
            }
        });
        Ok(socket.into())
    }

    /// Watches the streams: how many are open. It counts no bytes.
    #[must_use]
    pub fn status(&self) -> &RelayStatus {
        &self.status
    }

    /// Cuts what is open, and waits for that.
    pub async fn shutdown(self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for HandedStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandedStreams")
            .field("opened", &self.opened)
            .field("counters", &self.status.counters())
            .finish_non_exhaustive()
    }
}

/// Our descriptor of a stream. Closing it would not end the stream, since QEMU has one of its own: it is cut.
struct Held(TcpStream);

impl Held {
    /// Waits until the destination has closed the stream, or it broke. The data is QEMU's: nothing is read.
    async fn closed(&self) {
        while let Ok(ready) = self.0.ready(Interest::READABLE | Interest::ERROR).await {
            if ready.is_read_closed() || ready.is_error() {
                return;
            }
            let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            drop(self.0.try_io(Interest::READABLE, forget));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fails on a stream that is over already.
        socket::shutdown(self.0.as_raw_fd(), Shutdown::Both).ok();
    }
}
