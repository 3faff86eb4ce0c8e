//! Both ends of a session over in-memory pipes and over TCP.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::frame::encode;
use super::*;
use crate::deadline;

const SOON: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Test;

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
enum Ask {
    Add { left: u32, right: u32 },
    Commit,
    Fill { bytes: usize },
}

impl Protocol for Test {
    type Request = Ask;
    type Reply = String;
    type Notice = u32;
}

struct Pair {
    client: Client<Test>,
    notices: Notices<Test>,
    server: Server<Test>,
    requests: Requests<Test>,
}

fn pair() -> Pair {
    let (near, far) = duplex(4096);
    let (client, notices) = Client::start(near, Timing::default());
    let (server, requests) = Server::start(far, Timing::default());
    Pair {
        client,
        notices,
        server,
        requests,
    }
}

/// A client whose peer is played by the test.
fn client_alone() -> (Client<Test>, Notices<Test>, DuplexStream) {
    let (near, far) = duplex(4096);
    let (client, notices) = Client::start(near, Timing::default());
    (client, notices, far)
}

fn frame_of(json: &serde_json::Value) -> Vec<u8> {
    encode(json).unwrap()
}

#[tokio::test]
async fn replies_reach_their_requests_in_any_order() {
    let Pair {
        client,
        server,
        mut requests,
        ..
    } = pair();
    let (one, two) = (
        Ask::Add { left: 1, right: 2 },
        Ask::Add { left: 3, right: 4 },
    );
    let serve = async {
        let (first, ask) = requests.next().await.unwrap();
        assert_eq!(ask, Ask::Add { left: 1, right: 2 });
        let (second, _) = requests.next().await.unwrap();
        server.reply(second, Ok("seven".to_owned())).unwrap();
        server.reply(first, Ok("three".to_owned())).unwrap();
    };
    let (three, seven, ()) = tokio::join!(
        client.request(&one, SOON),
        client.request(&two, SOON),
        serve
    );
    assert_eq!(
        (three.unwrap().as_str(), seven.unwrap().as_str()),
        ("three", "seven")
    );
}

#[tokio::test]
async fn a_fault_is_an_answer_and_the_session_goes_on() {
    let Pair {
        client,
        server,
        mut requests,
        ..
    } = pair();
    let serve = async {
        let (id, _) = requests.next().await.unwrap();
        server
            .reply(id, Err(Fault::new(FaultCode::WrongState, "not prepared")))
            .unwrap();
        let (id, _) = requests.next().await.unwrap();
        server.reply(id, Ok("committed".to_owned())).unwrap();
    };
    let ask = async {
        let error = client.request(&Ask::Commit, SOON).await.unwrap_err();
        assert_eq!(error.fault().unwrap().code, FaultCode::WrongState);
        assert!(!error.is_session_over() && !error.never_sent());
        assert_eq!(
            client.request(&Ask::Commit, SOON).await.unwrap(),
            "committed"
        );
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn notices_come_in_order_and_none_is_lost_at_the_end() {
    let Pair {
        client,
        mut notices,
        server,
        requests,
    } = pair();
    for n in 0..500 {
        server.notify(&n).unwrap();
    }
    let (mut received, ()) = tokio::join!(
        async {
            let mut received = Vec::new();
            while let Ok(notice) = notices.next().await {
                received.push(notice);
            }
            received
        },
        server.close()
    );
    assert!(received.iter().copied().eq(0..500));
    received.clear();
    assert!(matches!(client.ended().await, ControlError::Closed));
    let error = client.request(&Ask::Commit, SOON).await.unwrap_err();
    assert!(error.never_sent() && error.is_session_over(), "{error:?}");
    drop(requests);
}

#[tokio::test]
async fn a_request_that_arrived_is_handed_out_after_the_session_broke() {
    let Pair {
        client,
        server,
        mut requests,
        ..
    } = pair();
    {
        let ask = Ask::Commit;
        let mut request = Box::pin(client.request(&ask, SOON));
        assert!(futures_util::poll!(&mut request).is_pending());
    }
    drop(client);
    assert!(matches!(server.ended().await, ControlError::Closed));
    let (id, ask) = requests.next().await.unwrap();
    assert_eq!(ask, Ask::Commit);
    assert!(
        server
            .reply(id, Ok(String::new()))
            .unwrap_err()
            .never_sent()
    );
    assert!(matches!(requests.next().await, Err(ControlError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_an_idle_session_alive() {
    let Pair {
        client,
        server,
        mut requests,
        ..
    } = pair();
    tokio::select! {
        why = client.ended() => panic!("{why}"),
        why = server.ended() => panic!("{why}"),
        _ = requests.next() => panic!("no request was made"),
        () = tokio::time::sleep(10 * deadline::PEER_SILENCE) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_noticed_by_every_waiter() {
    let (client, mut notices, far) = client_alone();
    let started = Instant::now();
    let (first, second, notice, ended) = tokio::join!(
        client.request(&Ask::Commit, 100 * SOON),
        client.request(&Ask::Commit, 100 * SOON),
        notices.next(),
        client.ended()
    );
    let limit = deadline::PEER_SILENCE;
    for error in [
        first.unwrap_err(),
        second.unwrap_err(),
        notice.unwrap_err(),
        ended,
    ] {
        assert!(
            matches!(error, ControlError::PeerSilent { limit: l } if l == limit),
            "{error}"
        );
    }
    assert!(started.elapsed() < 2 * limit);
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_drips_an_endless_frame_is_silent() {
    let (client, _notices, mut far) = client_alone();
    let drip = async {
        far.write_all(&100_u32.to_be_bytes()).await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if far.write_all(b" ").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        why = client.ended() => assert!(matches!(why, ControlError::PeerSilent { .. })),
        () = drip => {}
    }
}

#[tokio::test]
async fn a_peer_that_closes_is_noticed_by_every_waiter() {
    let (client, mut notices, far) = client_alone();
    drop(far);
    let (reply, notice) = tokio::join!(client.request(&Ask::Commit, SOON), notices.next());
    assert!(reply.unwrap_err().is_session_over());
    assert!(matches!(notice, Err(ControlError::Closed)), "{notice:?}");
}

#[tokio::test]
async fn a_peer_that_dies_inside_a_frame_has_closed_the_session() {
    let (client, _notices, mut far) = client_alone();
    far.write_all(&[0, 0, 0, 9, b'{']).await.unwrap();
    drop(far);
    let why = client.ended().await;
    assert!(matches!(why, ControlError::Closed), "{why:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_reply_ends_at_its_deadline() {
    let Pair {
        client,
        server,
        mut requests,
        ..
    } = pair();
    let error = client
        .request(&Ask::Commit, Duration::from_secs(2))
        .await
        .unwrap_err();
    assert!(matches!(error, ControlError::Deadline { .. }));
    assert!(!error.never_sent() && !error.is_session_over());
    let (late, _) = requests.next().await.unwrap();
    server.reply(late, Ok("late".to_owned())).unwrap();
    let serve = async {
        let (id, _) = requests.next().await.unwrap();
        server.reply(id, Ok("in time".to_owned())).unwrap();
    };
    let (reply, ()) = tokio::join!(client.request(&Ask::Commit, SOON), serve);
    assert_eq!(reply.unwrap(), "in time");
}

#[tokio::test]
async fn garbage_from_the_peer_ends_the_session() {
    use serde_json::json;
    for bytes in [
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
        frame_of(&json!({"unheard-of": 1})),
        frame_of(&json!({"reply": {"id": 77, "body": "stray"}})),
        frame_of(&json!({"request": {"id": 1, "body": "Commit"}})),
        frame_of(&json!({"notice": "not a number"})),
        vec![0; 4],
    ] {
        let (client, _notices, mut far) = client_alone();
        far.write_all(&bytes).await.unwrap();
        let why = client.ended().await;
        assert!(matches!(why, ControlError::Garbled { .. }), "{why:?}");
    }
}

#[tokio::test]
async fn a_request_that_the_server_cannot_read_is_answered_with_a_fault() {
    let (mut near, far) = duplex(4096);
    let (_server, _requests) = Server::<Test>::start(far, Timing::default());
    let request = serde_json::json!({"request": {"id": 5, "body": {"Explode": {}}}});
    near.write_all(&frame_of(&request)).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("bad-request") {
        let mut length = [0; 4];
        near.read_exact(&mut length).await.unwrap();
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        near.read_exact(&mut body).await.unwrap();
        seen = String::from_utf8(body).unwrap();
    }
    assert!(seen.starts_with(r#"{"fault":{"id":5,"#), "{seen}");
}

#[tokio::test]
async fn what_fits_no_frame_is_refused_and_hurts_nobody() {
    let Pair {
        client,
        server,
        mut requests,
        ..
    } = pair();
    let serve = async {
        let (id, ask) = requests.next().await.unwrap();
        let Ask::Fill { bytes } = ask else {
            panic!("{ask:?}")
        };
        let error = server.reply(id, Ok("x".repeat(bytes))).unwrap_err();
        assert!(matches!(error, ControlError::Unsendable { .. }));
        let (id, _) = requests.next().await.unwrap();
        server.reply(id, Ok("x".repeat(FRAME_LIMIT - 100))).unwrap();
    };
    let ask = async {
        let error = client
            .request(&Ask::Fill { bytes: FRAME_LIMIT }, SOON)
            .await
            .unwrap_err();
        assert_eq!(error.fault().unwrap().code, FaultCode::Failed);
        let reply = client.request(&Ask::Commit, SOON).await.unwrap();
        assert_eq!(reply.len(), FRAME_LIMIT - 100);
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn a_refusal_tells_the_source_why() {
    let (client, mut notices, mut far) = client_alone();
    let fault = Fault::new(FaultCode::Busy, "another migration runs");
    let refusal = frame_of(&serde_json::json!({"refused": fault}));
    far.write_all(&refusal).await.unwrap();
    let error = notices.next().await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { source } if *source == fault),
        "{error:?}"
    );
    drop(client);
}

#[tokio::test]
async fn both_ends_learn_the_offset_of_the_clocks() {
    let Pair { client, server, .. } = pair();
    let known = async {
        while client.clock().is_none() || server.clock().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, known).await.unwrap();
    for clock in [client.clock().unwrap(), server.clock().unwrap()] {
        // One clock on both sides: the offset is no more than the error that it admits.
        assert!(
            clock.offset_ns.unsigned_abs() <= clock.rtt_ns / 2 + 1,
            "{clock:?}"
        );
    }
}

#[tokio::test]
async fn a_session_works_over_tcp_and_closes_without_losing_the_last_reply() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    let (client, _notices) = Client::<Test>::start(near.unwrap(), Timing::default());
    let (server, mut requests) = Server::<Test>::start(accepted.unwrap().0, Timing::default());
    let serve = async {
        let (id, _) = requests.next().await.unwrap();
        server.reply(id, Ok("x".repeat(900_000))).unwrap();
        server.close().await;
    };
    let (reply, ()) = tokio::join!(client.request(&Ask::Commit, SOON), serve);
    assert_eq!(reply.unwrap().len(), 900_000);
    assert!(matches!(client.ended().await, ControlError::Closed));
}
