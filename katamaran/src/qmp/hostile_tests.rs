//! How the client behaves with a monitor that misbehaves, and with callers that give up.

use std::time::Duration;

use serde_json::json;

use super::command::{Cont, QueryStatus, Stop};
use super::fake::{Fake, connect_to_opening};
use super::{CloseReason, Qmp, QmpError};

#[track_caller]
fn reason(error: &QmpError) -> &CloseReason {
    match error {
        QmpError::Closed { source } => source,
        other => panic!("not closed: {other:?}"),
    }
}

#[tokio::test]
async fn a_peer_that_is_no_monitor_is_quoted() {
    for opening in ["SSH-2.0-OpenSSH_9.2p1\r\n", "{\"return\": {}}\n"] {
        let error = connect_to_opening(opening.as_bytes()).await;
        let QmpError::NotQmp { start } = &error else {
            panic!("{error:?}")
        };
        assert!(
            start.contains(&opening[..5].escape_default().to_string()),
            "{start}"
        );
    }
    let binary = connect_to_opening(b"\xff\x00\n").await;
    assert_eq!(
        binary.to_string(),
        "not a QMP monitor: it opened with \"\\xff\\x00\""
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_a_clear_error() {
    let (_fake, near) = Fake::silent();
    let error = Qmp::over(near).await.unwrap_err();
    assert!(matches!(error, QmpError::NoGreeting { .. }) && error.is_timeout());
    assert!(
        error
            .to_string()
            .contains("another client holds the monitor")
    );

    let half_a_line = connect_to_opening(b"login: ").await;
    assert!(matches!(half_a_line, QmpError::NotQmp { .. }));
}

#[tokio::test]
async fn a_peer_that_closes_at_once_is_reported() {
    let (fake, near) = Fake::silent();
    drop(fake);
    assert!(matches!(
        reason(&Qmp::over(near).await.unwrap_err()),
        CloseReason::Eof
    ));
}

#[tokio::test(start_paused = true)]
async fn a_command_without_reply_ends_at_its_deadline_and_its_late_reply_hurts_nobody() {
    let (mut fake, qmp) = Fake::connected().await;
    let within = Duration::from_secs(3);
    let error = qmp.execute_within(Stop, within).await.unwrap_err();
    assert!(matches!(error, QmpError::Deadline { command: "stop", within: w } if w == within));

    let late = fake.receive().await;
    let serve = async {
        let next = fake.receive().await;
        fake.answer(&late, json!({"late": true})).await;
        fake.answer(&next, json!({"running": false, "status": "paused"}))
            .await;
    };
    let (status, ()) = tokio::join!(qmp.execute(QueryStatus), serve);
    assert!(!status.unwrap().running);
}

#[tokio::test]
async fn a_dropped_call_does_not_shift_replies() {
    let (mut fake, qmp) = Fake::connected().await;
    for _ in 0..3 {
        let mut call = Box::pin(qmp.execute(Stop));
        assert!(futures_util::poll!(&mut call).is_pending());
        drop(call);
    }
    let serve = async {
        for _ in 0..3 {
            let stop = fake.receive().await;
            assert_eq!(stop.name, "stop");
            fake.answer(&stop, json!({"not": "a status"})).await;
        }
        let query = fake.receive().await;
        fake.answer(&query, json!({"running": true, "status": "running"}))
            .await;
    };
    let (status, ()) = tokio::join!(qmp.execute(QueryStatus), serve);
    assert!(status.unwrap().running);
}

#[tokio::test]
async fn the_end_of_the_connection_reaches_every_waiter() {
    let (mut fake, qmp) = Fake::connected().await;
    let mut events = qmp.subscribe();
    let mut other_events = qmp.subscribe();
    let clone = qmp.clone();
    let die = async {
        fake.receive().await;
        fake.receive().await;
        fake.event("SHUTDOWN", json!({"guest": false})).await;
        drop(fake);
    };
    let (stop, cont, gone, ()) = tokio::join!(
        qmp.execute(Stop),
        clone.execute(Cont),
        other_events.wait_for(|_| false, Duration::from_secs(60)),
        die
    );
    for error in [stop.unwrap_err(), cont.unwrap_err(), gone.unwrap_err()] {
        assert!(matches!(reason(&error), CloseReason::Eof));
    }
    assert_eq!(events.recv().await.unwrap().name.as_str(), "SHUTDOWN");
    assert!(events.recv().await.unwrap_err().is_closed());
    assert!(qmp.execute(Stop).await.unwrap_err().is_closed());
    assert!(qmp.subscribe().recv().await.unwrap_err().is_closed());
    assert!(qmp.is_closed());
}

#[tokio::test]
async fn garbage_ends_the_connection_and_is_quoted() {
    for (garbage, quoted) in [
        (&b"qemu: fatal error\n"[..], "qemu: fatal error"),
        (b"{\"event\": \n", "{\\\"event\\\":"),
        (b"42\n", "42"),
        (b"{\"neither\": 1}\n", "neither"),
        (b"{\"return\": {}}\n", "return"),
        (b"{\"return\": {}, \"id\": 99}\n", "99"),
    ] {
        let (mut fake, qmp) = Fake::connected().await;
        let (result, ()) = tokio::join!(qmp.execute(Stop), async {
            fake.receive().await;
            fake.send_raw(garbage).await;
        });
        let error = result.unwrap_err();
        let why = reason(&error).to_string();
        assert!(why.contains(quoted), "{why}");
    }
}

#[tokio::test]
async fn a_line_without_end_is_refused_before_memory_runs_out() {
    let (mut fake, qmp) = Fake::connected().await;
    let (result, taken) = tokio::join!(qmp.execute(Stop), fake.flood(1 << 30));
    assert!(matches!(
        reason(&result.unwrap_err()),
        CloseReason::LineTooLong { .. }
    ));
    assert!(taken < 64 << 20, "{taken} bytes taken");
}

#[tokio::test]
async fn a_large_line_within_the_limit_is_taken() {
    let (mut fake, qmp) = Fake::connected().await;
    let text = "a".repeat(3 << 20);
    let (result, ()) = tokio::join!(
        qmp.execute_raw("query-qmp-schema", json!(null), Duration::from_secs(60)),
        async {
            let command = fake.receive().await;
            fake.answer(&command, json!(text)).await;
        }
    );
    assert_eq!(result.unwrap().as_str().unwrap().len(), text.len());
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_socket() {
    let (fake, qmp) = Fake::connected().await;
    let mut events = qmp.subscribe();
    drop(qmp.clone());
    assert!(!qmp.is_closed());
    drop(qmp);
    let error = events.recv().await.unwrap_err();
    assert!(matches!(reason(&error), CloseReason::Dropped));
    fake.expect_end().await;
}
