//! How the client behaves with a well-behaved monitor.

use std::time::Duration;

use serde_json::json;

use super::command::{
    Capability, Cont, Migrate, MigrateContinue, MigrateSetCapabilities, MigrateSetParameters,
    MigrationParameters, MigrationStatus, QueryBlock, QueryMemorySizeSummary, QueryMigrate,
    QueryMigrateCapabilities, QueryStatus, RunState, Stop,
};
use super::fake::Fake;
use super::{ErrorClass, EventName, Qmp, QmpError};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn connecting_reads_the_version_and_the_peer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut fake = Fake::over(stream);
        fake.greet().await;
        let command = fake.receive().await;
        fake.answer(&command, json!({})).await;
        fake
    };
    let (_fake, qmp) = tokio::join!(serve, Qmp::connect(&path));
    let qmp = qmp.unwrap();
    assert_eq!(qmp.version().to_string(), "7.2.22");
    assert!(qmp.version().at_least(7, 2) && !qmp.version().at_least(8, 0));
    assert_eq!(qmp.peer_pid(), Some(std::process::id()));
}

#[tokio::test]
async fn a_missing_socket_is_named() {
    let error = Qmp::connect("/nonexistent/qmp.sock".as_ref())
        .await
        .unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }));
    assert!(error.to_string().contains("/nonexistent/qmp.sock"));
}

#[tokio::test]
async fn replies_out_of_order_reach_their_callers() {
    let (mut fake, qmp) = Fake::connected().await;
    let serve = async {
        let first = fake.receive().await;
        let second = fake.receive().await;
        fake.event("RESUME", json!({})).await;
        fake.answer(&second, json!({"base-memory": 1024, "plugged-memory": 2}))
            .await;
        fake.event("STOP", json!({})).await;
        fake.answer(
            &first,
            json!({"running": true, "status": "running", "singlestep": false}),
        )
        .await;
    };
    let (status, memory, ()) = tokio::join!(
        qmp.execute(QueryStatus),
        qmp.execute(QueryMemorySizeSummary),
        serve
    );
    let status = status.unwrap();
    assert!(status.running);
    assert_eq!(status.status, RunState::Running);
    assert_eq!(memory.unwrap().total(), 1026);
}

#[tokio::test]
async fn a_refusal_carries_class_and_text() {
    let (mut fake, qmp) = Fake::connected().await;
    let serve = async {
        let command = fake.receive().await;
        fake.refuse(&command, "CommandNotFound", "no such command")
            .await;
        let command = fake.receive().await;
        fake.refuse(&command, "NewClass", "no").await;
    };
    let calls = async {
        let first = qmp.execute(Cont).await.unwrap_err();
        assert!(first.is_unknown_command() && first.is_refused());
        assert_eq!(
            first.to_string(),
            "QMP cont: no such command (CommandNotFound)"
        );
        let QmpError::Refused { class, .. } = qmp.execute(Cont).await.unwrap_err() else {
            panic!("refused");
        };
        assert_eq!(class, ErrorClass::Other("NewClass".to_owned()));
    };
    tokio::join!(serve, calls);
}

#[tokio::test]
async fn no_event_from_subscription_on_is_lost() {
    const MANY: usize = 5_000;
    let (mut fake, qmp) = Fake::connected().await;
    let mut early = qmp.subscribe();
    let serve = async {
        for n in 0..MANY {
            fake.event("MIGRATION_PASS", json!({"pass": n})).await;
        }
        let command = fake.receive().await;
        fake.event("STOP", json!({})).await;
        fake.answer(&command, json!({})).await;
    };
    let (_, stopped) = tokio::join!(serve, qmp.execute(Stop));
    stopped.unwrap();
    // All of it is there without waiting: events before a reply precede the reply.
    for n in 0..MANY {
        assert_eq!(early.try_recv().unwrap().data["pass"], n);
    }
    let stop = early.try_recv().unwrap();
    assert_eq!(stop.name, EventName::Stop);
    assert_eq!(stop.timestamp_us, Some(1_700_000_000_250_000));
    assert!(early.try_recv().is_none());
    assert!(qmp.subscribe().try_recv().is_none());
}

#[tokio::test]
async fn unknown_events_and_events_without_data_or_clock_pass() {
    let (mut fake, qmp) = Fake::connected().await;
    let mut events = qmp.subscribe();
    fake.send(json!({"event": "FROM_THE_FUTURE", "new": [1]}))
        .await;
    let clockless = json!({"seconds": -1, "microseconds": -1});
    fake.send(json!({"event": "STOP", "timestamp": clockless}))
        .await;
    let event = events.recv().await.unwrap();
    assert_eq!(event.name, EventName::Other("FROM_THE_FUTURE".to_owned()));
    assert!(event.data.is_null());
    assert_eq!(events.recv().await.unwrap().timestamp_us, None);
}

#[tokio::test]
async fn waiting_for_an_event_skips_others() {
    let (mut fake, qmp) = Fake::connected().await;
    let mut events = qmp.subscribe();
    for status in ["setup", "active", "pre-switchover", "completed"] {
        fake.event("MIGRATION", json!({"status": status})).await;
    }
    let wanted = Some(MigrationStatus::PreSwitchover);
    events
        .wait_for(|event| event.migration_status() == wanted, SOON)
        .await
        .unwrap();
    let last = events.recv().await.unwrap().migration_status();
    assert_eq!(last, Some(MigrationStatus::Completed));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_does_not_come_is_a_timeout() {
    let (_fake, qmp) = Fake::connected().await;
    let error = qmp.subscribe().wait_for(|_| true, SOON).await.unwrap_err();
    assert!(matches!(error, QmpError::EventDeadline { within: SOON }));
    assert!(error.is_timeout() && !error.is_closed());
}

#[tokio::test]
async fn arguments_are_written_as_qemu_spells_them() {
    let (mut fake, qmp) = Fake::connected().await;
    let calls = async {
        let parameters = MigrationParameters {
            downtime_limit: Some(1),
            max_bandwidth: Some(0),
            ..Default::default()
        };
        qmp.execute(MigrateSetParameters::from(parameters))
            .await
            .unwrap();
        qmp.execute(MigrateSetCapabilities::on([Capability::Events]))
            .await
            .unwrap();
        qmp.execute(Migrate {
            uri: "unix:/x".to_owned(),
        })
        .await
        .unwrap();
        qmp.execute(MigrateContinue::default()).await.unwrap();
        qmp.execute(Stop).await.unwrap();
    };
    let expected = [
        (
            "migrate-set-parameters",
            json!({"downtime-limit": 1, "max-bandwidth": 0}),
        ),
        (
            "migrate-set-capabilities",
            json!({"capabilities": [{"capability": "events", "state": true}]}),
        ),
        ("migrate", json!({"uri": "unix:/x"})),
        ("migrate-continue", json!({"state": "pre-switchover"})),
        ("stop", json!(null)),
    ];
    let serve = async {
        for (name, arguments) in expected {
            let command = fake.receive().await;
            assert_eq!(
                (command.name.as_str(), &command.arguments),
                (name, &arguments)
            );
            fake.answer(&command, json!({})).await;
        }
    };
    tokio::join!(calls, serve);
}

#[tokio::test]
async fn replies_of_old_and_new_releases_are_understood() {
    let (mut fake, qmp) = Fake::connected().await;
    let calls = async {
        let nothing = qmp.execute(QueryMigrate).await.unwrap();
        assert_eq!(nothing.status, None);
        let active = qmp.execute(QueryMigrate).await.unwrap();
        assert_eq!(
            active.status,
            Some(MigrationStatus::Other("warp".to_owned()))
        );
        let ram = active.ram.unwrap();
        assert_eq!(
            (ram.remaining, ram.mbps, ram.dirty_sync_count),
            (Some(4096), Some(8.5), None)
        );
        let capabilities = qmp.execute(QueryMigrateCapabilities).await.unwrap();
        assert_eq!(
            capabilities[0].capability,
            Capability::Other("compress".to_owned())
        );
        let disks = qmp.execute(QueryBlock).await.unwrap();
        assert_eq!(disks[0].node_name(), Some("node0"));
        assert_eq!(disks[0].virtual_size(), Some(64));
        assert_eq!(disks[1].node_name(), None);
        assert_eq!(qmp.machine_type().await.unwrap(), "pc-q35-7.2");
    };
    let serve = async {
        for reply in [
            json!({}),
            json!({"status": "warp", "new": {}, "ram": {"remaining": 4096, "mbps": 8.5, "q": 1}}),
            json!([{"capability": "compress", "state": false}]),
            json!([
                {"device": "", "qdev": "disk0", "locked": false,
                 "inserted": {"node-name": "node0", "image": {"virtual-size": 64}}},
                {"device": "cd0", "removable": true}
            ]),
            json!("pc-q35-7.2-machine"),
        ] {
            let command = fake.receive().await;
            fake.answer(&command, reply).await;
        }
    };
    tokio::join!(calls, serve);
}
