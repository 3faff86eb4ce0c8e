//! Byte streams whose kind does not matter: TCP, unix sockets, TLS over either, in-memory pipes.

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A connection in both directions, of any kind.
pub type BoxStream = Box<dyn ByteStream>;
