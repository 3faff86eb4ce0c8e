//! What Prometheus sees of a migration: during it over HTTP and in the file, after it in the file.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use katamaran::metrics::catalogue;
use katamaran_tests::lab::{Node, Start};
use katamaran_tests::run::{Migration, MigrationOptions, Stage, StageOptions, TrafficSpec};
use nix::sys::signal::Signal;
use prometheus_parse::{Scrape, Value};

use crate::support::{both, number, report, require};

const PORT: u16 = 9478;
/// A copy that takes some seconds.
const SLOWLY: &str = "--max-bandwidth=25M";

/// Numbers by series, as another parser of the format reads them.
type Numbers = BTreeMap<String, f64>;

fn read(text: &str) -> Numbers {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let scrape = Scrape::parse(lines).unwrap();
    let mut numbers = Numbers::new();
    for sample in scrape.samples {
        let (Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) = sample.value
        else {
            continue;
        };
        let labels = sample.labels.to_string();
        numbers.insert(format!("{}{{{labels}}}", sample.metric), value);
    }
    assert!(!numbers.is_empty(), "{text}");
    // Nothing that is not documented.
    for name in numbers.keys() {
        let known = catalogue().iter().any(|f| name.starts_with(f.name));
        assert!(known, "{name} is not in the catalogue");
    }
    numbers
}

fn scrape(stage: &Stage, node: Node) -> Option<Numbers> {
    let address = SocketAddr::new(node.ipv4().into(), PORT);
    let netns = stage.lab.network().node(node);
    let answer = netns.run(|| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    });
    let answer = answer.unwrap()?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    Some(read(body))
}

fn read_file(path: &Path) -> Numbers {
    read(&std::fs::read_to_string(path).unwrap())
}

/// Both sides listen, and share a file as if they were on one node.
fn options(file: &Path, more: &[&str]) -> MigrationOptions {
    let args = |node: Node, more: &[&str]| {
        let mut args = vec![
            format!("--metrics-listen={}:{PORT}", node.ipv4()),
            format!("--metrics-file={}", file.display()),
        ];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    };
    MigrationOptions {
        source_args: args(Node::A, more),
        dest_args: args(Node::B, &[]),
        ..MigrationOptions::default()
    }
}

fn migrations(role: &str, result: &str) -> String {
    format!("katamaran_migration_migrations_total{{result=\"{result}\",role=\"{role}\"}}")
}

fn active(role: &str) -> String {
    format!("katamaran_migration_active_migrations{{role=\"{role}\"}}")
}

/// The one series of a metric that belongs to a migration.
fn live(numbers: &Numbers, name: &str) -> Option<f64> {
    let name = format!("katamaran_migration_{name}{{");
    let mut found = numbers
        .iter()
        .filter(|(series, _)| series.starts_with(&name));
    let value = found.next().map(|(_, value)| *value);
    assert!(found.next().is_none(), "{name} several times");
    value
}

/// Looks until some RAM was copied, and sees both sides say that they are at it.
fn watch_the_copy(migration: &mut Migration<'_>, file: &Path) {
    let mut seen: Vec<Numbers> = Vec::new();
    migration
        .look_until("RAM gauges that move", |migration| {
            if let Some(now) = scrape(migration.stage, Node::A)
                && live(&now, "ram_transferred_bytes").is_some()
            {
                seen.push(now);
            }
            let gauges = |name| seen.iter().filter_map(move |now| live(now, name));
            let sent = gauges("ram_transferred_bytes")
                .fold((f64::MAX, 0.0), |(low, high), b| (b.min(low), b.max(high)));
            let measured = gauges("ram_bandwidth_bytes_per_second").next().is_some();
            Ok(measured && sent.1 > sent.0 + 4e6)
        })
        .unwrap();
    let source = seen.last().unwrap();
    assert_eq!(source[&active("source")], 1.0, "{source:#?}");
    assert_eq!(source[&active("destination")], 0.0, "it is not one");
    assert_eq!(live(source, "phase"), Some(1.0), "{source:#?}");
    let size = live(source, "ram_size_bytes").unwrap();
    assert!((128e6..160e6).contains(&size), "{size}");
    assert!(live(source, "ram_remaining_bytes").unwrap() <= size);
    let dest = scrape(migration.stage, Node::B).unwrap();
    assert_eq!(dest[&active("destination")], 1.0, "{dest:#?}");
    // The file has both.
    let file = read_file(file);
    for role in ["source", "destination"] {
        assert_eq!(file[&active(role)], 1.0, "{file:#?}");
    }
}

/// A new QEMU on B after the one before has ended.
fn renew_guest_b(stage: &mut Stage) {
    stage.guest_b = stage
        .lab
        .start_guest(Node::B, Start::Incoming, &[])
        .unwrap();
    stage.qmp_b = stage.guest_b.qmp().unwrap();
}

#[test]
fn prometheus_sees_a_migration_and_the_file_keeps_what_all_of_them_counted() {
    require!(Root, Bpf, Lab);
    let mut stage = Stage::set(StageOptions {
        traffic: TrafficSpec {
            pps_v4: 500,
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    let file: PathBuf = stage.lab.dir().join("katamaran.prom");

    // One that somebody stops.
    let mut migration = Migration::begin(&mut stage, &options(&file, &[SLOWLY])).unwrap();
    watch_the_copy(&mut migration, &file);
    migration.source.process().signal(Signal::SIGTERM).unwrap();
    let (ended, _) = migration.end().unwrap();
    let counted = read_file(&file);
    assert_eq!(
        counted[&migrations("source", "cancelled")],
        1.0,
        "{}",
        both(&ended)
    );
    assert_eq!(
        counted[&migrations("destination", "failed")],
        1.0,
        "{counted:#?}"
    );
    assert_eq!(
        counted[&migrations("source", "success")],
        0.0,
        "{counted:#?}"
    );
    assert!(scrape(&stage, Node::A).is_none(), "nobody listens any more");

    // And one that goes through.
    renew_guest_b(&mut stage);
    let mut migration = Migration::begin(&mut stage, &options(&file, &[SLOWLY])).unwrap();
    watch_the_copy(&mut migration, &file);
    let (ended, _) = migration.end().unwrap();
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(&ended));
    let counted = read_file(&file);
    for role in ["source", "destination"] {
        assert_eq!(counted[&migrations(role, "success")], 1.0, "{counted:#?}");
        assert_eq!(counted[&active(role)], 0.0, "{counted:#?}");
    }
    assert_eq!(counted[&migrations("source", "cancelled")], 1.0, "kept");
    assert!(
        !counted.keys().any(|series| series.contains("session=")),
        "gauges of what is over: {counted:#?}"
    );
    for (role, side) in [("source", &ended.source), ("destination", &ended.dest)] {
        let report = report(side);
        let told = |name: &str, labels: &str| {
            let series = format!("katamaran_migration_{name}{{{labels}role=\"{role}\"}}");
            counted.get(&series).copied()
        };
        for (hop, pointer) in [
            ("s1", "/ledger/s1/packets"),
            ("s2", "/ledger/s2/packets"),
            ("s2_read", "/ledger/s2_read"),
            ("s3", "/ledger/s3/packets"),
            ("d1", "/ledger/d1/packets"),
            ("d2", "/ledger/d2/packets"),
            ("d3", "/ledger/d3/packets"),
            ("d3_read", "/ledger/d3_read"),
        ] {
            assert_eq!(
                told("packets_total", &format!("hop=\"{hop}\",")),
                Some(number(report, pointer)),
                "{role} {hop}\n{counted:#?}"
            );
        }
        assert_eq!(
            told("lost_packets_total", ""),
            Some(number(report, "/ledger/lost"))
        );
        assert_eq!(
            told("kernel_drops_total", ""),
            Some(number(report, "/ledger/x"))
        );
        let verdict = format!(
            "katamaran_migration_verdicts_total{{role=\"{role}\",verdict={}}}",
            report["verdict"]
        );
        assert_eq!(counted[&verdict], 1.0, "{counted:#?}");
        // Only the source can measure them, with the estimate of the clocks' offset.
        for (name, pointer) in [
            ("downtime_seconds_sum", "/downtime_ms"),
            ("blackout_seconds_sum", "/blackout_ms"),
        ] {
            let expected = report.pointer(pointer).and_then(serde_json::Value::as_f64);
            let (told, expected) = (told(name, ""), expected.map(|ms| ms / 1000.0));
            assert!(
                match (told, expected) {
                    (Some(told), Some(expected)) => (told - expected).abs() < 1e-6,
                    (told, expected) => told == expected,
                },
                "{role} {name}: {told:?}, not {expected:?}"
            );
        }
    }
    // Both runs of the source sent RAM.
    let sent = counted["katamaran_migration_ram_sent_bytes_total{role=\"source\"}"];
    assert!(sent > number(report(&ended.source), "/ram/transferred"));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    assert!(client.is_perfect(), "scrapes disturb nothing: {client:?}");
}
