//! The port, with friends and strangers at it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::listener::HALF_OPEN;
use super::*;
use crate::session_id::SessionId;
use crate::stream::BoxStream;

const SOON: Duration = Duration::from_secs(30);
const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);

#[derive(Debug)]
struct Texts;

impl Protocol for Texts {
    type Request = String;
    type Reply = String;
    type Notice = String;
}

async fn start(most_sessions: usize) -> (Listener, Dialer) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = Listener::start(tcp, plaintext(), most_sessions).unwrap();
    let dialer = Dialer::new(listener.address(), plaintext());
    (listener, dialer)
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.expect("in time")
}

/// The next arrival, which must be a session.
async fn session(listener: &mut Listener) -> ControlConnection {
    match soon(listener.next()).await {
        Arrival::Session(connection) => connection,
        Arrival::Look(look) => panic!("{look:?}"),
    }
}

/// The fault that a control connection for `session` is refused with.
async fn refusal(dialer: &Dialer, session: SessionId) -> Fault {
    let io = dialer.dial(Preamble::control(session)).await.unwrap();
    let (client, _notices) = Client::<Texts>::start(io, Timing::default());
    let why = soon(client.ended()).await;
    why.fault().unwrap_or_else(|| panic!("{why:?}")).clone()
}

async fn expect_end(io: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    match soon(io.read_to_end(&mut rest)).await {
        Ok(_) => assert!(rest.is_empty(), "{rest:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

async fn echo(requests: &mut Requests<Texts>, server: &Server<Texts>) {
    let (id, text) = requests.next().await.unwrap();
    server.reply(id, Ok(text)).unwrap();
}

#[tokio::test]
async fn a_session_and_its_streams_find_each_other() {
    let (mut listener, dialer) = start(1).await;
    let near = dialer.dial(Preamble::control(ONE)).await.unwrap();
    let mut connection = session(&mut listener).await;
    assert_eq!(connection.session, ONE);
    let (client, _notices) = Client::<Texts>::start(near, Timing::default());
    let far = connection.io.take().unwrap();
    let (server, mut requests) = Server::<Texts>::start(far, Timing::default());
    let hello = "hello".to_owned();
    let (reply, ()) =
        soon(async { tokio::join!(client.request(&hello, SOON), echo(&mut requests, &server)) })
            .await;
    assert_eq!(reply.unwrap(), "hello");

    for index in [0, 7] {
        let mut near = dialer.dial(Preamble::ram(ONE, index)).await.unwrap();
        near.write_all(b"ram").await.unwrap();
        let mut stream = soon(connection.next_stream()).await;
        assert_eq!((stream.kind, stream.index), (StreamKind::Ram, index));
        let mut bytes = [0; 3];
        stream.io.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ram");
    }
    listener.shutdown().await;
}

#[tokio::test]
async fn ipv6_works_as_well() {
    let Ok(tcp) = TcpListener::bind("[::1]:0").await else {
        eprintln!("SKIP ipv6_works_as_well: no IPv6 loopback");
        return;
    };
    let mut listener = Listener::start(tcp, plaintext(), 1).unwrap();
    let dialer = Dialer::new(listener.address(), plaintext());
    let _near = dialer.dial(Preamble::control(ONE)).await.unwrap();
    assert!(session(&mut listener).await.peer.is_ipv6());
}

#[tokio::test]
async fn a_stream_of_an_unknown_session_is_cut() {
    let (mut listener, dialer) = start(1).await;
    let mut early = dialer.dial(Preamble::ram(ONE, 0)).await.unwrap();
    expect_end(&mut early).await;

    let _control = dialer.dial(Preamble::control(ONE)).await.unwrap();
    let connection = session(&mut listener).await;
    let mut other = dialer.dial(Preamble::ram(TWO, 0)).await.unwrap();
    expect_end(&mut other).await;

    drop(connection);
    let mut late = dialer.dial(Preamble::ram(ONE, 0)).await.unwrap();
    expect_end(&mut late).await;
}

#[tokio::test]
async fn a_busy_destination_says_so_and_is_free_again_later() {
    let (mut listener, dialer) = start(1).await;
    let _control = dialer.dial(Preamble::control(ONE)).await.unwrap();
    let connection = session(&mut listener).await;
    let twice = refusal(&dialer, ONE).await;
    assert_eq!(twice.code, FaultCode::Busy);
    assert!(
        twice.message.contains("control connection already"),
        "{twice}"
    );
    let other = refusal(&dialer, TWO).await;
    assert!(other.message.contains("another migration"), "{other}");

    drop(connection);
    let _control = dialer.dial(Preamble::control(TWO)).await.unwrap();
    assert_eq!(session(&mut listener).await.session, TWO);
}

#[tokio::test]
async fn strangers_do_not_disturb_a_live_session_nor_new_streams() {
    let (mut listener, dialer) = start(1).await;
    let near = dialer.dial(Preamble::control(ONE)).await.unwrap();
    let mut connection = session(&mut listener).await;
    let (client, _notices) = Client::<Texts>::start(near, Timing::default());
    let far = connection.io.take().unwrap();
    let (server, mut requests) = Server::<Texts>::start(far, Timing::default());

    let mut strangers = Vec::new();
    let mut silent = Vec::new();
    for n in 0..2 * HALF_OPEN {
        let mut stranger = TcpStream::connect(listener.address()).await.unwrap();
        match n % 4 {
            0 => silent.push(stranger),
            1 => {
                stranger
                    .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
                    .unwrap();
                strangers.push(stranger);
            }
            2 => {
                stranger.write_all(&[0xff; 24]).await.unwrap();
                strangers.push(stranger);
            }
            _ => drop(stranger),
        }
        if n % 16 == 0 {
            let text = n.to_string();
            let (reply, ()) = soon(async {
                tokio::join!(client.request(&text, SOON), echo(&mut requests, &server))
            })
            .await;
            assert_eq!(reply.unwrap(), text);
        }
    }
    for mut stranger in strangers {
        expect_end(&mut stranger).await;
    }
    // The silent ones are still within their deadline; a stream of the session gets past them.
    let _near = dialer.dial(Preamble::ram(ONE, 3)).await.unwrap();
    assert_eq!(soon(connection.next_stream()).await.index, 3);
    assert_eq!(silent.len(), HALF_OPEN / 2);
}

#[tokio::test]
async fn more_silent_strangers_than_places_push_out_one_another() {
    let (mut listener, dialer) = start(1).await;
    let mut silent = Vec::new();
    for _ in 0..HALF_OPEN + 10 {
        silent.push(TcpStream::connect(listener.address()).await.unwrap());
    }
    let _near = dialer.dial(Preamble::control(ONE)).await.unwrap();
    assert_eq!(session(&mut listener).await.session, ONE);
    // The oldest is out long before its deadline.
    timeout(crate::deadline::PREAMBLE / 2, expect_end(&mut silent[0]))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_stranger_is_dropped_at_the_deadline() {
    let (listener, _dialer) = start(1).await;
    let mut stranger = TcpStream::connect(listener.address()).await.unwrap();
    expect_end(&mut stranger).await;
}

#[tokio::test]
async fn a_handshake_that_fails_or_hangs_lets_nobody_in_and_stops_nobody() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // A handshake that wants one byte, and likes only `!`.
    let upgrade: Upgrade = std::sync::Arc::new(|mut tcp: TcpStream| {
        Box::pin(async move {
            match tcp.read_u8().await? {
                b'!' => Ok(Box::new(tcp) as BoxStream),
                _ => Err(std::io::ErrorKind::PermissionDenied.into()),
            }
        })
    });
    let mut listener = Listener::start(tcp, upgrade, 1).unwrap();
    let _hanging = TcpStream::connect(listener.address()).await.unwrap();
    let plain = Dialer::new(listener.address(), plaintext());
    let mut refused = plain.dial(Preamble::control(TWO)).await.unwrap();
    expect_end(&mut refused).await;

    let mut good = TcpStream::connect(listener.address()).await.unwrap();
    good.write_u8(b'!').await.unwrap();
    Preamble::control(ONE).write(&mut good, SOON).await.unwrap();
    assert_eq!(session(&mut listener).await.session, ONE);
}

#[tokio::test]
async fn nobody_at_the_port_is_a_clear_error() {
    let (listener, dialer) = start(1).await;
    listener.shutdown().await;
    let Err(error) = dialer.dial(Preamble::control(ONE)).await else {
        panic!("connected to a closed port");
    };
    assert!(matches!(error, DialError::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn who_only_asks_takes_nobodys_place() {
    let (mut listener, dialer) = start(1).await;
    let io = dialer.dial(Preamble::look(TWO)).await.unwrap();
    let Arrival::Look(look) = soon(listener.next()).await else {
        panic!("no look")
    };
    let (client, _notices) = Client::<Texts>::start(io, Timing::default());
    let (server, mut requests) = Server::<Texts>::start(look.io, Timing::default());
    let hello = "hello".to_owned();
    let (reply, ()) =
        soon(async { tokio::join!(client.request(&hello, SOON), echo(&mut requests, &server)) })
            .await;
    assert_eq!(reply.unwrap(), "hello");
    // The one place is free.
    let _near = dialer.dial(Preamble::control(ONE)).await.unwrap();
    assert_eq!(session(&mut listener).await.session, ONE);
    listener.shutdown().await;
}

#[tokio::test]
async fn who_asks_during_a_session_is_told_so() {
    let (mut listener, dialer) = start(1).await;
    let _near = dialer.dial(Preamble::control(ONE)).await.unwrap();
    let _connection = session(&mut listener).await;
    let io = dialer.dial(Preamble::look(TWO)).await.unwrap();
    let (client, _notices) = Client::<Texts>::start(io, Timing::default());
    let why = soon(client.ended()).await;
    assert_eq!(why.fault().unwrap().code, FaultCode::Busy);
    listener.shutdown().await;
}
