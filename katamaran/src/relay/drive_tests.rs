//! The streams of drives: sockets that QEMU is handed, and what splices them at the destination.

use std::io;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use super::tests::{MIB, exchange, soon};
use super::*;
use crate::stream::BoxStream;

/// Streams to a port, and the ends at that port.
async fn handed() -> (HandedStreams, TcpListener) {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let streams = HandedStreams::new(connector(move |_stream| async move {
        Ok(Box::new(TcpStream::connect(address).await?) as BoxStream)
    }));
    (streams, port)
}

/// What QEMU makes of a socket that it is handed.
fn taken(socket: std::os::fd::OwnedFd) -> TcpStream {
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true).unwrap();
    TcpStream::from_std(socket).unwrap()
}

#[tokio::test]
async fn a_socket_that_is_handed_out_carries_data_and_is_cut_from_under_its_owner() {
    let (mut streams, port) = handed().await;
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut near = taken(streams.open().await.unwrap());
        let (mut far, _) = soon(port.accept()).await.unwrap();
        for word in ["one", "two"] {
            near.write_all(word.as_bytes()).await.unwrap();
            let mut received = [0; 3];
            soon(far.read_exact(&mut received)).await.unwrap();
            far.write_all(&received).await.unwrap();
            soon(near.read_exact(&mut received)).await.unwrap();
            assert_eq!(received, word.as_bytes());
        }
        ends.push((near, far));
    }
    assert_eq!(streams.status().counters().streams_open, 2);
    soon(streams.shutdown()).await;
    for (mut near, mut far) in ends {
        assert_eq!(soon(near.read(&mut [0])).await.unwrap(), 0);
        assert_eq!(soon(far.read(&mut [0])).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_handed_stream_that_the_destination_closes_is_not_open_any_more() {
    let (mut streams, port) = handed().await;
    let near = taken(streams.open().await.unwrap());
    let (far, _) = soon(port.accept()).await.unwrap();
    let other = taken(streams.open().await.unwrap());
    let (reset, _) = soon(port.accept()).await.unwrap();
    drop(far);
    reset.set_zero_linger().unwrap();
    drop(reset);
    soon(streams.status().drained()).await;
    assert_eq!(streams.status().counters().streams_open, 0);
    drop((near, other));
}

#[tokio::test]
async fn a_stream_that_cannot_be_connected_is_not_handed_out() {
    let refuse = connector(|_| async { Err(io::ErrorKind::ConnectionRefused.into()) });
    let mut streams = HandedStreams::new(refuse);
    let error = soon(streams.open()).await.unwrap_err();
    assert!(
        matches!(error, RelayError::Connect { stream: 0, .. }),
        "{error}"
    );
    let mut sealed = HandedStreams::new(connector(|_| async {
        Ok(Box::new(tokio::io::duplex(1).0) as BoxStream)
    }));
    let error = soon(sealed.open()).await.unwrap_err();
    assert!(
        matches!(error, RelayError::NotASocket { stream: 0 }),
        "{error}"
    );
    assert_eq!(streams.status().counters(), RelayCounters::default());
}

/// A relay of drives' data between a TCP connection and a unix socket: their outer ends.
async fn spliced(directory: &TempDir) -> (DestinationRelay, TcpStream, UnixStream) {
    let path = directory.path().join("nbd");
    let server = UnixListener::bind(&path).unwrap();
    let relay = DestinationRelay::start(&path, Carries::Drives);
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(port.local_addr().unwrap())
        .await
        .unwrap();
    relay.add(0, Box::new(port.accept().await.unwrap().0)).await;
    let (far, _) = soon(server.accept()).await.unwrap();
    (relay, near, far)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drives_data_is_whole_both_ways_and_half_closes() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, mut near, mut far) = spliced(&directory).await;
    exchange(&mut near, &mut far).await;
    soon(relay.status().drained()).await;
    let expected = RelayCounters {
        to_destination_bytes: 64 << 20,
        to_source_bytes: 1 << 20,
        streams_opened: 1,
        streams_open: 0,
    };
    assert_eq!(relay.status().counters(), expected);
    assert!(relay.status().failure().is_none());
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drives_data_that_nobody_reads_waits_and_is_cut_with_the_relay() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, mut near, mut far) = spliced(&directory).await;
    let data = vec![1; 64 * MIB];
    let filled = timeout(Duration::from_millis(300), near.write_all(&data)).await;
    assert!(filled.is_err(), "64 MiB went to nobody");
    soon(relay.shutdown()).await;
    assert!(soon(near.write_all(&data)).await.is_err());
    let mut rest = Vec::new();
    soon(far.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_closes_its_export_cuts_the_stream_to_the_source() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, mut near, far) = spliced(&directory).await;
    drop(far);
    let gone = async {
        let chunk = vec![0; MIB];
        while near.write_all(&chunk).await.is_ok() {}
    };
    soon(gone).await;
    soon(relay.status().drained()).await;
    relay.shutdown().await;
}
