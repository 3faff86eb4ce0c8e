//! Nodes that translate a service's address, and refuse connections that they have not seen from the start.
//!
//! What the fabric does when it has converged, it does for the service's address as well: from then on the node where
//! V is gets packets of connections that the other one has translated so far.

use std::net::Ipv4Addr;
use std::time::Duration;

use katamaran::conntrack::{Added, Entry, Existing, Family, Table};
use katamaran_tests::lab::{GUEST_V4, GUEST_V6, LabConfig, Netns, Node};
use katamaran_tests::run::{
    Ended, Migration, MigrationOptions, MigrationRun, Role, Stage, StageOptions, Timeline,
    TrafficSpec, settle,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{all, both, number, report, require, side};

/// What [`options`] has the client open.
const STREAMS: usize = 5;
const TCP_STREAMS: usize = 3;

fn options(flags: &[&str]) -> MigrationOptions {
    MigrationOptions {
        stage: StageOptions {
            lab: LabConfig {
                guarded: true,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: 300,
                pps_service: 100,
                tcp_v4: Some(100_000),
                tcp_service: Some(100_000),
                ..TrafficSpec::default()
            },
            ..StageOptions::default()
        },
        // Long enough for many packets to go by the source after the VM has moved.
        converge_after: Duration::from_secs(2),
        source_args: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..MigrationOptions::default()
    }
}

/// A migration on guarded nodes, and how many packets each node's firewall called invalid.
fn migrate(flags: &[&str]) -> (MigrationRun, [u64; 2]) {
    let options = options(flags);
    let mut stage = Stage::set(options.stage.clone()).unwrap();
    let (ended, timeline) = Migration::begin(&mut stage, &options)
        .unwrap()
        .end()
        .unwrap();
    let run = settle(&mut stage, ended, &timeline).unwrap();
    let invalid = both_nodes(&stage, invalid);
    (run, invalid)
}

fn both_nodes<T>(stage: &Stage, look: fn(&Netns) -> T) -> [T; 2] {
    [Node::A, Node::B].map(|node| look(stage.lab.network().node(node)))
}

/// Packets that a node's firewall has dropped.
fn invalid(node: &Netns) -> u64 {
    let rules = node
        .command("nft", &["-j", "list", "chain", "inet", "node", "forward"])
        .unwrap();
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let rules = rules["nftables"].as_array().unwrap();
    let expressions = rules
        .iter()
        .filter_map(|rule| rule["rule"]["expr"].as_array());
    let drops = expressions.filter(|rule| rule.iter().any(|what| what.get("drop").is_some()));
    let counters = drops
        .flatten()
        .filter_map(|what| what["counter"]["packets"].as_u64());
    counters.sum()
}

/// What a node tracks of the VM.
fn tracked(node: &Netns) -> Vec<Entry> {
    let list = || Table::open().unwrap().list(Family::Both).unwrap();
    let mut entries = node.run(list).unwrap();
    entries.retain(|entry| entry.concerns(&[GUEST_V4.into(), GUEST_V6.into()]));
    entries
}

#[test]
fn connections_that_nodes_translate_and_filter_survive() {
    require!(Root, Bpf, Lab);
    let (run, invalid) = migrate(&["--require-zero-drop"]);
    assert!(run.client.is_perfect(), "{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    assert_eq!(invalid, [0, 0], "{}", all(&run));
    let source = side(&run.source);
    assert_eq!(source.status, Some(0), "{}", all(&run));
    let report = report(source);
    assert_eq!(report["verdict"], "proven", "{}", all(&run));
    let conntrack = &report["conntrack"];
    let count = |what: &str| number(conntrack, &format!("/{what}"));
    assert!(count("read") >= STREAMS as f64, "{conntrack:#}");
    assert!(count("relaxed") >= TCP_STREAMS as f64, "{conntrack:#}");
    assert_eq!(
        count("read"),
        count("carried") + count("ended"),
        "{conntrack:#}"
    );
    assert_eq!(count("bound_to_source"), 0.0, "{conntrack:#}");
    assert_eq!(conntrack["unavailable"], Value::Null, "{conntrack:#}");
    assert!(count("settled_ms") > 0.0, "{conntrack:#}");
}

/// Connections of V that nobody uses, as a node remembers them that has seen one.
fn idle(count: usize, like: &Entry) -> Vec<Entry> {
    let mut entry = like.clone();
    entry.timeout = 600;
    (0..count)
        .map(|number| {
            let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
            let client = Ipv4Addr::new(172, 16 | high, middle, low).into();
            entry.original.source = client;
            entry.reply.destination = client;
            entry.clone()
        })
        .collect()
}

/// Puts connections into a node's table.
fn add(node: &Netns, entries: &[Entry]) {
    let add = || Table::open().unwrap().add(entries, Existing::Keep).unwrap();
    let added = node.run(add).unwrap();
    assert!(added.iter().all(|added| *added == Added::New));
}

/// A stage on which A remembers V's connections.
fn set(options: &MigrationOptions) -> (Stage, Entry) {
    let stage = Stage::set(options.stage.clone()).unwrap();
    let of_service = |entry: &Entry| entry.is_translated() && entry.tcp.is_none();
    let entry = tracked(stage.lab.network().node(Node::A))
        .into_iter()
        .find(of_service)
        .unwrap();
    (stage, entry)
}

fn run(mut stage: Stage, options: &MigrationOptions) -> MigrationRun {
    let (ended, timeline) = Migration::begin(&mut stage, options)
        .unwrap()
        .end()
        .unwrap();
    settle(&mut stage, ended, &timeline).unwrap()
}

/// Prints what they cost.
#[test]
fn twenty_thousand_connections_move_with_the_vm() {
    require!(Root, Bpf, Lab);
    const MANY: usize = 20_000;
    let options = options(&["--require-zero-drop"]);
    let (stage, entry) = set(&options);
    add(stage.lab.network().node(Node::A), &idle(MANY, &entry));
    let run = run(stage, &options);
    assert!(run.client.is_perfect(), "{}", all(&run));
    let source = side(&run.source);
    assert_eq!(source.status, Some(0), "{}", all(&run));
    let conntrack = &report(source)["conntrack"];
    println!("{}\n{conntrack:#}", run.summary());
    assert_eq!(conntrack["read"], conntrack["carried"], "{conntrack:#}");
    assert!(
        number(conntrack, "/carried") >= (MANY + STREAMS) as f64,
        "{conntrack:#}"
    );
    // However many there are, the pause has to do with those only that are new.
    assert!(
        number(conntrack, "/told_in_pause") < STREAMS as f64,
        "{conntrack:#}"
    );
}

#[test]
fn a_destination_without_room_is_a_warning_and_no_failure() {
    require!(Root, Bpf, Lab);
    let options = options(&[]);
    let (stage, mut entry) = set(&options);
    let b = stage.lab.network().node(Node::B);
    let fill = || Table::open().unwrap().fill().unwrap();
    let most = b.run(fill).unwrap().most.unwrap_or_default();
    if most > 1 << 18 {
        println!("SKIP: the kernel's table is too big to be filled");
        return;
    }
    // Somebody else's.
    entry.original.destination = Ipv4Addr::new(10, 96, 0, 99).into();
    entry.reply.source = Ipv4Addr::new(10, 244, 0, 99).into();
    let most = usize::try_from(most).unwrap();
    add(b, &idle(most - most / 8, &entry));
    let run = run(stage, &options);
    let source = side(&run.source);
    assert_eq!(source.status, Some(0), "{}", all(&run));
    let report = report(source);
    let conntrack = &report["conntrack"];
    assert_eq!(conntrack["unavailable"], Value::Null, "{conntrack:#}");
    assert_eq!(conntrack["carried"], 0, "{conntrack:#}");
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("net.netfilter.nf_conntrack_max"),
        "{warnings}"
    );
}

#[test]
fn a_kernel_that_tells_no_news_carries_connections_all_the_same() {
    require!(Root, Bpf, Lab);
    let options = options(&[]);
    let (stage, _) = set(&options);
    let silent = [("netfilter/nf_conntrack_events", "0")];
    let a = stage.lab.network().node(Node::A);
    a.sysctl(&silent).unwrap();
    let run = run(stage, &options);
    assert!(run.client.is_perfect(), "{}", all(&run));
    let conntrack = &report(side(&run.source))["conntrack"];
    assert_eq!(conntrack["unavailable"], Value::Null, "{conntrack:#}");
    assert!(
        number(conntrack, "/carried") >= STREAMS as f64,
        "{conntrack:#}"
    );
}

#[test]
fn without_their_entries_such_connections_break() {
    require!(Root, Bpf, Lab);
    let (run, [_, invalid_at_b]) = migrate(&["--conntrack=off"]);
    let source = side(&run.source);
    assert_eq!(source.status, Some(0), "{}", all(&run));
    assert_eq!(report(source)["conntrack"], Value::Null, "{}", all(&run));
    assert!(run.client.tcp().all(|tcp| !tcp.intact), "{}", all(&run));
    assert!(invalid_at_b > 0, "{}", all(&run));
}

/// The streams go on after a migration that was given up, and B knows nothing of them any more.
#[track_caller]
fn assert_given_up(mut stage: Stage, ended: Ended, timeline: &Timeline) {
    let [a, b] = both_nodes(&stage, tracked);
    assert_eq!(ended.source.status, Some(130), "{}", both(&ended));
    assert_eq!(b, [], "{}", both(&ended));
    // A has missed what was redirected, and would call all that follows invalid.
    assert!(!a.iter().any(Entry::is_strict), "{}", both(&ended));
    let relaxed = &report(&ended.source)["conntrack"]["relaxed"];
    assert_eq!(relaxed, TCP_STREAMS, "{}", both(&ended));
    // Some time for what is wrong to show.
    stage.client.as_ref().unwrap().wait_for_more(300).unwrap();
    let run = settle(&mut stage, ended, timeline).unwrap();
    let copies: u64 = run.client.udp().map(|udp| udp.duplicated).sum();
    assert_eq!((run.client.lost(), copies), (0, 0), "{}", all(&run));
    assert!(run.client.tcp().all(|tcp| tcp.intact), "{}", all(&run));
    assert_eq!(both_nodes(&stage, invalid), [0, 0], "{}", all(&run));
}

#[test]
fn a_copy_that_is_given_up_leaves_no_entry_and_breaks_no_connection() {
    require!(Root, Bpf, Lab);
    // Slow enough to be met on the way.
    let options = options(&["--max-bandwidth=4M"]);
    let mut stage = Stage::set(options.stage.clone()).unwrap();
    let b = stage.lab.network().node(Node::B).clone();
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until("entries on B", |_| Ok(tracked(&b).len() >= STREAMS))
        .unwrap();
    let source = migration.side(Role::Source).process();
    source.signal(Signal::SIGINT).unwrap();
    let (ended, timeline) = migration.end().unwrap();
    assert_given_up(stage, ended, &timeline);
}

#[test]
fn a_pause_that_is_given_up_leaves_no_entry_and_breaks_no_connection() {
    require!(Root, Bpf, Lab);
    // A long pause, in which packets are redirected that A so does not see.
    let mut options = options(&["--downtime=3000"]);
    options.stage.lab.dirty = Some((30, 16));
    let mut stage = Stage::set(options.stage.clone()).unwrap();
    stage.lab.slow_path_to_b(7482, 20_000_000).unwrap();
    let mut migration = Migration::begin(&mut stage, &options).unwrap();
    migration
        .look_until("V's stop", |migration| {
            Ok(migration.timeline.stop_ns.is_some())
        })
        .unwrap();
    let source = migration.side(Role::Source).process();
    source.signal(Signal::SIGINT).unwrap();
    let (ended, timeline) = migration.end().unwrap();
    assert_given_up(stage, ended, &timeline);
}
