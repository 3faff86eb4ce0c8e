//! Streams that QEMU is handed, on a path that goes silent.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use katamaran::relay::{HandedStreams, RelayError, connector};
use katamaran::stream::BoxStream;
use tokio::time::timeout;

use crate::support::{Net, pair, require_root};

const FAR_MAC: &str = "02:00:00:00:09:02";
/// Several times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node that does not read, and one that is not there any more: only the second is given up.
#[tokio::test]
async fn a_stream_is_cut_when_nobody_acknowledges_and_not_when_nobody_reads() {
    require_root!();
    let (near, far) = pair("left", "right", 1500);
    far.ip(&format!("link set right address {FAR_MAC}"));
    near.ip("addr add 10.9.9.1/24 dev left");
    let ends = ["10.9.9.2", "10.9.9.3"].map(|address| {
        far.ip(&format!("addr add {address}/24 dev right"));
        near.ip(&format!(
            "neigh replace {address} lladdr {FAR_MAC} dev left nud permanent"
        ));
        let listen = || TcpListener::bind((address, 4000)).unwrap();
        far.netns.run(listen).unwrap()
    });
    let addresses = ends.each_ref().map(|end| end.local_addr().unwrap());
    let near = Arc::new(near);
    let dial = Arc::clone(&near);
    let mut streams = HandedStreams::new(connector(move |stream| {
        let connected = dialled(&dial, addresses[stream as usize]);
        async move { connected }
    }));
    let mut sockets = Vec::new();
    let mut accepted = Vec::new();
    for end in &ends {
        sockets.push(TcpStream::from(streams.open().await.unwrap()));
        accepted.push(end.accept().unwrap());
    }
    fill(&mut sockets[0]);

    far.ip("addr del 10.9.9.3/24 dev right");
    sockets[1].write_all(b"to nobody").unwrap();
    let failure = timeout(PATIENCE, streams.status().failed()).await.unwrap();
    assert!(
        matches!(failure, RelayError::Silent { stream: 1, .. }),
        "{failure}"
    );
    timeout(PATIENCE, async {
        while streams.status().counters().streams_open != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    // The other has had as much time to be taken for silent.
    assert_eq!(streams.status().counters().streams_open, 1);
    streams.shutdown().await;
}

fn dialled(near: &Net, address: SocketAddr) -> std::io::Result<BoxStream> {
    let connect = || TcpStream::connect(address);
    let socket = near.netns.run(connect).unwrap()?;
    socket.set_nonblocking(true)?;
    Ok(Box::new(tokio::net::TcpStream::from_std(socket)?))
}

/// Writes until nothing more is taken.
fn fill(socket: &mut TcpStream) {
    loop {
        match socket.write(&[7; 65536]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}
