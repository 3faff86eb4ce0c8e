//! Where a migration goes to and comes from, by QEMU's URIs.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, bail};

/// Waits for a migration.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) fn bind(uri: &str) -> Result<Self> {
        let doing = || format!("listen at {uri}");
        Ok(match uri.split_once(':') {
            Some(("unix", path)) => Self::Unix(UnixListener::bind(path).with_context(doing)?),
            Some(("tcp", address)) => Self::Tcp(TcpListener::bind(address).with_context(doing)?),
            _ => bail!("invalid parameter 'uri': {uri:?}"),
        })
    }

    pub(super) fn accept(&self) -> Result<UnixStream> {
        const DOING: &str = "accept the stream";
        match self {
            Self::Unix(listener) => Ok(listener.accept().context(DOING)?.0),
            Self::Tcp(listener) => any_socket(listener.accept().context(DOING)?.0),
        }
    }
}

pub(super) fn connect(uri: &str) -> Result<UnixStream> {
    let doing = || format!("connect to {uri}");
    match uri.split_once(':') {
        Some(("unix", path)) => UnixStream::connect(path).with_context(doing),
        Some(("tcp", address)) => any_socket(TcpStream::connect(address).with_context(doing)?),
        _ => bail!("invalid parameter 'uri': {uri:?}"),
    }
}

/// What is done with a stream here is the same for every kind of socket.
fn any_socket(stream: TcpStream) -> Result<UnixStream> {
    stream.set_nodelay(true).context("send at once")?;
    Ok(OwnedFd::from(stream).into())
}
