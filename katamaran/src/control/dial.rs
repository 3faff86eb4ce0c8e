//! Connects to the destination's port.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::preamble::{Preamble, PreambleError};
use crate::deadline;
use crate::stream::BoxStream;

/// Makes a byte stream of a TCP connection: the place for TLS, on either side.
pub type Upgrade = Arc<
    dyn Fn(TcpStream) -> Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send>> + Send + Sync,
>;

/// The [`Upgrade`] that changes nothing.
#[must_use]
pub fn plaintext() -> Upgrade {
    Arc::new(|tcp| Box::pin(std::future::ready(Ok(Box::new(tcp) as BoxStream))))
}

/// The destination's port, as the source sees it.
#[derive(Clone)]
pub struct Dialer {
    address: SocketAddr,
    upgrade: Upgrade,
}

/// The destination's port could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection.
    #[error("connect to {address}")]
    Connect {
        address: SocketAddr,
        source: io::Error,
    },

    /// No connection in time.
    #[error("no connection to {address} within {:?}", deadline::DIAL)]
    Deadline { address: SocketAddr },

    /// The TLS handshake failed.
    #[error("secure the connection to {address}")]
    Upgrade {
        address: SocketAddr,
        source: io::Error,
    },

    /// The connection broke before it was of use.
    #[error("open the connection to {address}")]
    Preamble {
        address: SocketAddr,
        source: PreambleError,
    },
}

impl Dialer {
    /// Dials `address`.
    #[must_use]
    pub fn new(address: SocketAddr, upgrade: Upgrade) -> Self {
        Self { address, upgrade }
    }

    /// Connects and sends `preamble`, all within [`deadline::DIAL`].
    ///
    /// # Errors
    /// [`DialError`]. Whether the destination takes the connection shows only on it.
    pub async fn dial(&self, preamble: Preamble) -> Result<BoxStream, DialError> {
        let address = self.address;
        let dial = async {
            let tcp = TcpStream::connect(address)
                .await
                .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
                .map_err(|source| DialError::Connect { address, source })?;
            let mut io = (self.upgrade)(tcp)
                .await
                .map_err(|source| DialError::Upgrade { address, source })?;
            preamble
                .write(&mut io, deadline::DIAL)
                .await
                .map_err(|source| DialError::Preamble { address, source })?;
            Ok(io)
        };
        match timeout(deadline::DIAL, dial).await {
            Ok(dialed) => dialed,
            Err(_elapsed) => Err(DialError::Deadline { address }),
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
