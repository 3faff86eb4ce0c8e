//! Byte streams whose kind does not matter: TCP, unix sockets, TLS over either, in-memory pipes.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Any + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Any + Send + Unpin> ByteStream for S {}

/// A connection in both directions, of any kind.
pub type BoxStream = Box<dyn ByteStream>;

/// The TCP connection that `stream` is, for whoever needs the socket itself.
///
/// # Errors
/// The stream, if it is anything else, such as TLS over TCP.
pub fn into_tcp(stream: BoxStream) -> Result<TcpStream, BoxStream> {
    let kind: &dyn Any = &*stream;
    if !kind.is::<TcpStream>() {
        return Err(stream);
    }
    let stream: Box<dyn Any> = stream;
    Ok(*stream
        .downcast()
        .expect("it was just found to be a TCP connection"))
}

/// Another descriptor of the TCP connection that `stream` is; `None` if it is anything else.
///
/// # Errors
/// This process has too many descriptors.
pub fn tcp_socket(stream: &BoxStream) -> io::Result<Option<OwnedFd>> {
    let kind: &dyn Any = &**stream;
    let tcp = kind.downcast_ref::<TcpStream>();
    tcp.map(|tcp| tcp.as_fd().try_clone_to_owned()).transpose()
}
