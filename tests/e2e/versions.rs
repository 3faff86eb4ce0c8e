//! A node has another release of katamaran: refused by both, with what to upgrade, before anything is touched.
//!
//! The other release is this one, behind a relay that changes the number of the session's version on its way.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use katamaran_tests::lab::{Node, QemuVersion};
use katamaran_tests::run::{Migration, MigrationOptions, Stage, StageOptions};
use serde_json::Value;

use crate::support::{both, report, require};

/// Where the relay listens on B.
const RELAY_PORT: u16 = 7483;
const OURS: &[u8] = br#""versions":[3]"#;

/// Takes one connection on B and carries it to the destination there, `said` in place of [`OURS`].
fn relay_once(stage: &Stage, said: &'static [u8]) {
    assert_eq!(said.len(), OURS.len());
    let netns = stage.lab.network().node(Node::B);
    let listener = netns
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, RELAY_PORT)))
        .unwrap()
        .unwrap();
    let destination: SocketAddr = ([127, 0, 0, 1], 7482).into();
    // A socket belongs to the namespace of the thread that makes it.
    let onward = netns
        .run(|| TcpStream::connect(destination))
        .unwrap()
        .unwrap();
    thread::spawn(move || {
        let (source, _) = listener.accept().unwrap();
        let back = (onward.try_clone().unwrap(), source.try_clone().unwrap());
        thread::spawn(move || carry(back.0, back.1, None));
        carry(source, onward, Some(said));
    });
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut said: Option<&[u8]>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..length];
        let at = bytes.windows(OURS.len()).position(|w| w == OURS);
        if let (Some(at), Some(other)) = (at, said) {
            bytes[at..at + OURS.len()].copy_from_slice(other);
            said = None;
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
}

#[test]
fn the_releases_before_and_after_are_refused_by_both_sides_and_nothing_is_touched() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions::new(QemuVersion::StandIn, 300)).unwrap();
    let others: [(&[u8], &str, &str); 2] = [
        (br#""versions":[2]"#, "version 2", "the source"),
        (br#""versions":[4]"#, "version 4", "the destination"),
    ];
    for (said, version, behind) in others {
        let options = MigrationOptions {
            source_args: vec![format!("--port={RELAY_PORT}")],
            ..MigrationOptions::default()
        };
        let migration = Migration::begin_after(&mut stage, &options, |stage| {
            relay_once(stage, said);
            Ok(())
        });
        let (ended, _) = migration.unwrap().end().unwrap();
        let upgrade = format!("upgrade katamaran on {behind}");
        for side in [&ended.source, &ended.dest] {
            assert_eq!(side.status, Some(2), "{}", both(&ended));
            let report = report(side);
            assert_eq!(report["outcome"], "refused", "{report:#}");
            let error = report["error"].as_str().unwrap();
            for words in [version, &upgrade] {
                assert!(error.contains(words), "{words:?} is not in {error:?}");
            }
        }
        assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
        let migration = stage.qmp_a.command("query-migrate", Value::Null).unwrap();
        assert_eq!(migration["status"], Value::Null, "{}", both(&ended));
        let status = stage.qmp_b.command("query-status", Value::Null).unwrap();
        assert_eq!(status["status"], "inmigrate", "{}", both(&ended));
    }
    // Two of the same release understand each other.
    let migration = Migration::begin(&mut stage, &MigrationOptions::default()).unwrap();
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    assert!(client.is_perfect(), "{client:?}\n{}", both(&ended));
}
