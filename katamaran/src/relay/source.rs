//! The source's end: QEMU connects to a unix socket, each stream goes on to the destination.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::connector::{Connector, connect};
use super::error::RelayError;
use super::governor::Governor;
use super::pump;
use super::silence::silent;
use super::socket::PrivateSocket;
use super::status::RelayStatus;
use super::tasks::Tasks;
use crate::stream::{BoxStream, tcp_socket};

/// Relays the streams that the source's QEMU opens.
#[must_use = "a relay ends when it is dropped"]
pub struct SourceRelay {
    path: PathBuf,
    governor: Governor,
    status: RelayStatus,
    tasks: Tasks,
}

impl SourceRelay {
    /// Listens at `name` in `directory`, which only this user can enter and which is made where it is
    /// missing, and connects each stream of QEMU onwards, in the order in which QEMU opens them.
    ///
    /// # Errors
    /// The directory cannot be made or is somebody else's, its path is too long for a socket, or the
    /// socket cannot be made.
    pub fn start(
        directory: &Path,
        name: &str,
        connector: Connector,
        governor: Governor,
    ) -> Result<Self, RelayError> {
        let socket = PrivateSocket::bind(directory, name)?;
        let path = socket.path().to_owned();
        let status = RelayStatus::new();
        let mut tasks = Tasks::default();
        let (its_governor, its_status) = (governor.clone(), status.clone());
        tasks.spawn(async move {
            serve(&socket, &connector, &its_governor, &its_status).await;
        });
        Ok(Self {
            path,
            governor,
            status,
            tasks,
        })
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket as QEMU's `migrate` takes it.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// Sets the pace towards the destination.
    #[must_use]
    pub fn governor(&self) -> &Governor {
        &self.governor
    }

    /// Watches the relay.
    #[must_use]
    pub fn status(&self) -> &RelayStatus {
        &self.status
    }

    /// Cuts what is open, removes the socket, and the directory if it was the last in it, and waits for
    /// all of that.
    pub async fn shutdown(self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for SourceRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceRelay")
            .field("path", &self.path)
            .field("pace", &self.governor.pace())
            .field("counters", &self.status.counters())
            .finish_non_exhaustive()
    }
}

/// Accepts and relays until dropped; the streams end with it.
async fn serve(
    socket: &PrivateSocket,
    connector: &Connector,
    governor: &Governor,
    status: &RelayStatus,
) {
    let mut streams = JoinSet::new();
    for stream in 0.. {
        let accepted = loop {
            tokio::select! {
                accepted = socket.listener().accept() => break accepted,
                Some(_ended) = streams.join_next() => {}
            }
        };
        let near = match accepted {
            Ok((near, _address)) => near,
            Err(source) => {
                status.fail(RelayError::Accept {
                    source: Arc::new(source),
                });
                break;
            }
        };
        let open = status.open();
        // One after the other, so that the destination can keep their order without waiting.
        let far = match connect(stream, connector(stream)).await {
            Ok(far) => far,
            Err(error) => {
                status.fail(error);
                continue;
            }
        };
        tracing::debug!(stream, "migration stream connected onwards");
        let (governor, status) = (governor.clone(), status.clone());
        streams.spawn(async move {
            let _open = open;
            if let Err(error) = carry(stream, near, far, &governor, &status).await {
                status.fail(error);
            }
        });
    }
    while streams.join_next().await.is_some() {}
}

/// Until both directions have ended, or the path has been silent for too long: QEMU would wait, and the VM with it.
async fn carry(
    stream: u32,
    near: UnixStream,
    far: BoxStream,
    governor: &Governor,
    status: &RelayStatus,
) -> Result<(), RelayError> {
    let watched = tcp_socket(&far).map_err(|source| RelayError::Connect {
        stream,
        source: Arc::new(source),
    })?;
    let silent = async {
        match &watched {
            Some(socket) => silent(socket).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        joined = pump::join(stream, near, far, governor, status) => joined,
        () = silent => Err(RelayError::silent(stream)),
    }
}
