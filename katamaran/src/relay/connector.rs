//! Connecting a stream to the destination.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::timeout;

use super::error::RelayError;
use crate::deadline;
use crate::stream::BoxStream;

/// Connects stream number `n` to the destination, up to where QEMU's first byte may follow.
pub type Connector =
    Arc<dyn Fn(u32) -> Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send>> + Send + Sync>;

/// A [`Connector`] of an async closure.
pub fn connector<C, F>(connect: C) -> Connector
where
    C: Fn(u32) -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<BoxStream>> + Send + 'static,
{
    Arc::new(move |stream| Box::pin(connect(stream)))
}

/// Connects one stream, within [`deadline::RELAY_CONNECT`].
pub(super) async fn connect<S>(
    stream: u32,
    connecting: impl Future<Output = io::Result<S>>,
) -> Result<S, RelayError> {
    let within = deadline::RELAY_CONNECT;
    match timeout(within, connecting).await {
        Ok(connected) => connected.map_err(|source| RelayError::Connect {
            stream,
            source: Arc::new(source),
        }),
        Err(_elapsed) => Err(RelayError::ConnectDeadline { stream, within }),
    }
}
