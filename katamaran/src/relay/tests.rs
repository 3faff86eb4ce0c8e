//! Both relays joined over loopback TCP, with the test in the place of both QEMUs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, timeout};

use super::*;
use crate::stream::BoxStream;

const SOON: Duration = Duration::from_secs(60);
pub(super) const MIB: usize = 1 << 20;

/// Two relays and what stands around them.
struct Rig {
    directory: TempDir,
    source: SourceRelay,
    destination: Arc<DestinationRelay>,
    incoming: UnixListener,
    accept: tokio::task::JoinSet<()>,
}

impl Rig {
    async fn start(pace: Pace) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let incoming_path = directory.path().join("incoming.sock");
        let incoming = UnixListener::bind(&incoming_path).unwrap();
        let destination = Arc::new(DestinationRelay::start(&incoming_path, Carries::Ram));
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = port.local_addr().unwrap();
        let dial = connector(move |stream| async move {
            let mut io = TcpStream::connect(address).await?;
            io.write_u32(stream).await?;
            Ok(Box::new(io) as BoxStream)
        });
        let source = SourceRelay::start(
            &directory.path().join("s"),
            "ram.sock",
            dial,
            Governor::new(pace),
        )
        .unwrap();
        let mut accept = tokio::task::JoinSet::new();
        let adder = Arc::clone(&destination);
        accept.spawn(async move {
            loop {
                let (mut io, _) = port.accept().await.unwrap();
                let stream = io.read_u32().await.unwrap();
                adder.add(stream, Box::new(io)).await;
            }
        });
        Self {
            directory,
            source,
            destination,
            incoming,
            accept,
        }
    }

    /// A stream from one QEMU to the other: the source's end and the destination's.
    async fn stream(&self) -> (UnixStream, UnixStream) {
        let (near, far) = tokio::join!(
            UnixStream::connect(self.source.path()),
            self.incoming.accept()
        );
        (near.unwrap(), far.unwrap().0)
    }

    async fn stop(mut self) -> PathBuf {
        let socket = self.source.path().to_owned();
        self.source.shutdown().await;
        assert!(!socket.exists() && !socket.parent().unwrap().exists());
        self.accept.shutdown().await;
        Arc::into_inner(self.destination).unwrap().shutdown().await;
        self.directory.path().to_owned()
    }
}

/// Bytes without a pattern (xorshift).
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(super) async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.expect("in time")
}

/// Sends 64 MiB there and, with that way half-closed, 1 MiB back: whole, and each way with its end.
pub(super) async fn exchange<N, F>(near: &mut N, far: &mut F)
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let sent = noise(64 * MIB);
    let (mut received, mut returned) = (Vec::new(), Vec::new());
    let there = async {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near.read_to_end(&mut returned).await.unwrap();
    };
    let back = async {
        far.read_to_end(&mut received).await.unwrap();
        // The source has half-closed; the way back is still open.
        far.write_all(&received[..MIB]).await.unwrap();
        far.shutdown().await.unwrap();
    };
    soon(async { tokio::join!(there, back) }).await;
    assert!(
        received == sent,
        "{} bytes of {}",
        received.len(),
        sent.len()
    );
    assert!(returned == sent[..MIB]);
}

async fn read_exactly(io: &mut UnixStream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    soon(io.read_exact(&mut buffer)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_in_comes_out_with_half_close_and_return_path() {
    let rig = Rig::start(Pace::Full).await;
    let (mut near, mut far) = rig.stream().await;
    exchange(&mut near, &mut far).await;
    soon(rig.source.status().drained()).await;
    soon(rig.destination.status().drained()).await;
    for status in [rig.source.status(), rig.destination.status()] {
        let expected = RelayCounters {
            to_destination_bytes: 64 << 20,
            to_source_bytes: 1 << 20,
            streams_opened: 1,
            streams_open: 0,
        };
        assert_eq!(status.counters(), expected);
        assert!(status.failure().is_none());
    }
    rig.stop().await;
}

#[tokio::test]
async fn streams_keep_the_order_in_which_they_were_opened() {
    let rig = Rig::start(Pace::Full).await;
    let mut nears = Vec::new();
    for number in 0..8 {
        let mut near = UnixStream::connect(rig.source.path()).await.unwrap();
        near.write_u8(number).await.unwrap();
        nears.push(near);
    }
    for number in 0..8 {
        let (mut far, _) = soon(rig.incoming.accept()).await.unwrap();
        assert_eq!(soon(far.read_u8()).await.unwrap(), number);
    }
    assert_eq!(rig.source.status().counters().streams_opened, 8);
    drop(nears);
    rig.stop().await;
}

#[tokio::test]
async fn the_destination_puts_streams_in_order_and_refuses_doubles() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q.sock");
    let incoming = UnixListener::bind(&path).unwrap();
    let relay = DestinationRelay::start(&path, Carries::Ram);
    let mut kept = Vec::new();
    for number in [2_u8, 1, 0, 0, 3] {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_u8(number).await.unwrap();
        relay.add(u32::from(number), Box::new(far)).await;
        kept.push(near);
    }
    for number in 0..4 {
        let (mut far, _) = soon(incoming.accept()).await.unwrap();
        assert_eq!(soon(far.read_u8()).await.unwrap(), number);
    }
    assert!(matches!(
        soon(relay.status().failed()).await,
        RelayError::Twice { stream: 0 }
    ));
    relay.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_stream_is_named() {
    let relay = DestinationRelay::start(Path::new("/nonexistent"), Carries::Ram);
    let (mut near, far) = tokio::io::duplex(64);
    relay.add(1, Box::new(far)).await;
    let error = relay.status().failed().await;
    assert!(
        matches!(
            error,
            RelayError::Order {
                stream: 1,
                missing: 0,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_stops_the_stream_and_full_lets_it_go_on() {
    let rig = Rig::start(Pace::Full).await;
    let (mut near, mut far) = rig.stream().await;
    near.write_all(&[1; MIB]).await.unwrap();
    read_exactly(&mut far, MIB).await;

    let carried = || rig.source.status().counters().to_destination_bytes;
    soon(async {
        while carried() < 1 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    rig.source.governor().set(Pace::Hold);
    // Fill what QEMU can fill: its socket. Then it blocks, as it must.
    let data = vec![2; 4 * MIB];
    let mut accepted = 0;
    while let Ok(written) = timeout(Duration::from_millis(50), near.write(&data[accepted..])).await
    {
        accepted += written.unwrap();
    }
    assert!(
        accepted < MIB,
        "{accepted} bytes left QEMU in spite of the hold"
    );
    assert_eq!(carried(), 1 << 20);

    // The way back is not held.
    far.write_all(b"ok").await.unwrap();
    read_exactly(&mut near, 2).await;

    rig.source.governor().set(Pace::Full);
    let (written, ()) = tokio::join!(
        near.write_all(&data[accepted..]),
        read_exactly(&mut far, data.len())
    );
    written.unwrap();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_over_all_streams_together() {
    /// How long 4 MiB over two streams take.
    async fn time_at(pace: Pace) -> Duration {
        let rig = Rig::start(pace).await;
        let (mut near, mut far) = rig.stream().await;
        let (mut near2, mut far2) = rig.stream().await;
        let data = vec![3; 2 * MIB];
        let started = Instant::now();
        let (first, second, (), ()) = tokio::join!(
            near.write_all(&data),
            near2.write_all(&data),
            read_exactly(&mut far, data.len()),
            read_exactly(&mut far2, data.len()),
        );
        first.unwrap();
        second.unwrap();
        let took = started.elapsed();
        rig.stop().await;
        took
    }
    let slow = time_at(Pace::Rate(8 << 20)).await.as_secs_f64();
    let fast = time_at(Pace::Rate(32 << 20)).await.as_secs_f64();
    // A busy machine makes both slower, never faster than their rates.
    assert!(slow > 0.45, "4 MiB at 8 MiB/s took {slow} s");
    assert!(fast > 0.11, "4 MiB at 32 MiB/s took {fast} s");
    assert!(
        (1.5..10.0).contains(&(slow / fast)),
        "{slow} s against {fast} s"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slowing_down_takes_effect_while_a_stream_idles() {
    let rig = Rig::start(Pace::Full).await;
    let (mut near, mut far) = rig.stream().await;
    near.write_all(&[0]).await.unwrap();
    read_exactly(&mut far, 1).await;
    rig.source.governor().set(Pace::Rate(1));
    near.write_all(&[1; 4096]).await.unwrap();
    // At a byte per second, what was granted at full pace must not slip through.
    let mut buffer = [0; 4096];
    let mut slipped = 0;
    while let Ok(read) = timeout(Duration::from_millis(100), far.read(&mut buffer)).await {
        slipped += read.unwrap();
    }
    assert!(slipped <= 2, "{slipped}");
    rig.stop().await;
}

#[tokio::test]
async fn a_destination_that_cannot_be_reached_is_reported_and_cuts_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = connector(|_| async { Err(io::ErrorKind::ConnectionRefused.into()) });
    let path = directory.path().join("s");
    let relay = SourceRelay::start(&path, "ram.sock", refuse, Governor::default()).unwrap();
    assert_eq!(relay.uri(), format!("unix:{}/ram.sock", path.display()));
    let mut near = UnixStream::connect(relay.path()).await.unwrap();
    let error = soon(relay.status().failed()).await;
    assert!(
        matches!(error, RelayError::Connect { stream: 0, .. }),
        "{error}"
    );
    assert_eq!(soon(near.read(&mut [0])).await.unwrap(), 0);
    relay.shutdown().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_qemu_that_dies_cuts_the_stream_through_to_the_other_one() {
    let rig = Rig::start(Pace::Full).await;
    let (mut near, far) = rig.stream().await;
    drop(far);
    let gone = async {
        let chunk = vec![0; MIB];
        while near.write_all(&chunk).await.is_ok() {}
    };
    soon(gone).await;
    let error = soon(rig.source.status().failed()).await;
    assert!(
        matches!(
            error,
            RelayError::Write {
                stream: 0,
                direction: Direction::ToDestination,
                ..
            }
        ) || matches!(
            error,
            RelayError::Read {
                direction: Direction::ToSource,
                ..
            }
        ),
        "{error:?}"
    );
    rig.stop().await;
}

#[tokio::test]
async fn shutdown_cuts_held_streams_and_leaves_nothing() {
    let rig = Rig::start(Pace::Hold).await;
    let (mut near, _far) = rig.stream().await;
    near.write_all(&[0; 1000]).await.unwrap();
    let directory = rig.stop().await;
    // The rest of what was sent may be answered with a reset; the stream is over either way.
    assert!(matches!(near.read(&mut [0]).await, Ok(0) | Err(_)));
    assert!(!directory.join("s").exists());
}

#[tokio::test]
async fn a_socket_that_cannot_be_made_is_named() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let never = connector(|_| async { Err(io::ErrorKind::Unsupported.into()) });
    let start =
        |path: &Path| SourceRelay::start(path, "ram.sock", Arc::clone(&never), Governor::default());

    let long = directory.path().join("x".repeat(120));
    let error = start(&long).unwrap_err();
    assert!(
        matches!(error, RelayError::PathTooLong { limit: 107, .. }),
        "{error}"
    );
    assert!(!long.exists());

    let path = directory.path().join("s");
    let relay = start(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let error = start(&path).unwrap_err();
    assert!(matches!(error, RelayError::Socket { .. }), "{error}");
    assert!(
        relay.path().exists(),
        "the second relay must not remove the first one's socket"
    );
    relay.shutdown().await;
}

#[tokio::test]
async fn two_relays_share_a_directory_that_goes_with_the_last_but_not_with_somebody_elses() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let never = connector(|_| async { Err(io::ErrorKind::Unsupported.into()) });
    let path = directory.path().join("s");
    let start =
        |name: &str| SourceRelay::start(&path, name, Arc::clone(&never), Governor::default());
    let (ram, nbd) = (start("ram.sock").unwrap(), start("nbd.sock").unwrap());
    ram.shutdown().await;
    assert!(nbd.path().exists());
    nbd.shutdown().await;
    assert!(!path.exists());

    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = start("ram.sock").unwrap_err();
    assert!(matches!(error, RelayError::Socket { .. }), "{error}");
}
