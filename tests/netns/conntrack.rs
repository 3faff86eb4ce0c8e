//! Connections that move from one translating node to another.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use katamaran::conntrack::entry::{status, tcp_state};
use katamaran::conntrack::{Added, Begun, Entry, Existing, Family, News, Refusal};

use crate::support::{Net, require_root, skip_without};
use crate::two_nodes::{Connection, SILENCE, Stage, entries, table};

/// As the other kernel shows an entry that it was given: without what it was not told.
fn without_windows(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    entry.timeout = 0;
    for flags in entry.tcp.iter_mut().flat_map(|tcp| &mut tcp.flags) {
        *flags &= 0x07;
    }
    // Set by the kernel where it looked for a translation, also if there was none; and by the helper's rules.
    entry.status &= status::SEEN_REPLY
        | status::ASSURED
        | status::CONFIRMED
        | status::SRC_NAT
        | status::DST_NAT;
    entry
}

macro_rules! require_nft {
    () => {
        require_root!();
        if skip_without("nft") {
            return;
        }
    };
}

#[test]
fn a_translated_stream_breaks_at_a_node_that_does_not_know_it() {
    require_nft!();
    let stage = Stage::new();
    let mut connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    assert!(connection.works());
    stage.go(2);
    assert!(!connection.works());
}

#[test]
fn a_translated_stream_goes_on_at_a_node_that_was_told_of_it() {
    require_nft!();
    for (listen, target) in [
        ("10.244.0.5:8080", "10.96.0.10:80"),
        ("[fd00:244::5]:8080", "[fd00:96::10]:80"),
    ] {
        let stage = Stage::new();
        let mut connection = stage.connect(listen, target);
        assert!(connection.works());
        let read = entries(&stage.left);
        assert_eq!(read.len(), 1, "{read:?}");
        assert!(
            read[0].is_translated() && read[0].mark == 0x4000,
            "{read:?}"
        );
        assert_eq!(
            table(&stage.right).add(&read, Existing::Keep).unwrap(),
            [Added::New]
        );
        let there = entries(&stage.right);
        assert_eq!(there.len(), 1);
        assert_eq!(without_windows(&there[0]), without_windows(&read[0]));
        assert!(there[0].timeout.abs_diff(read[0].timeout) <= 2);
        stage.go(2);
        assert!(connection.works_backwards());
        for _ in 0..100 {
            assert!(connection.works());
        }
    }
}

/// Answers go by the right node, which was told of the stream, everything else still by the left one.
fn answers_by_the_right(liberal: bool) -> bool {
    let stage = Stage::new();
    let mut connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    assert!(connection.works());
    let read = entries(&stage.left);
    assert!(read[0].is_strict());
    table(&stage.right).add(&read, Existing::Keep).unwrap();
    assert!(!entries(&stage.right)[0].is_strict());
    if liberal {
        let mut left = table(&stage.left);
        assert_eq!(left.set_liberal(&[read[0].flow()], true).unwrap(), 1);
        assert!(!entries(&stage.left)[0].is_strict());
    }
    stage
        .server
        .ip("route replace 192.0.2.9 via 10.0.12.2 src 10.244.0.5");
    (0..100).all(|_| connection.works() && connection.works_backwards())
}

#[test]
fn a_node_that_sees_one_way_of_a_stream_has_to_be_liberal() {
    require_nft!();
    assert!(!answers_by_the_right(false));
    assert!(answers_by_the_right(true));
}

/// Opens a connection whose answers go by the right node, while that one is told what the left one sees.
fn opens_with_answers_by_the_right() -> bool {
    let stage = Stage::new();
    stage
        .server
        .ip("route replace 192.0.2.9 via 10.0.12.2 src 10.244.0.5");
    let (mut left, mut right) = (table(&stage.left), table(&stage.right));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let mut new = left.list(Family::V4).unwrap();
                new.retain(|entry| entry.is_opening());
                left.assume_open(&new).unwrap();
                new.retain(|entry| !told.contains(&entry.flow()));
                right.add(&new, Existing::Keep).unwrap();
                told.extend(new.iter().map(Entry::flow));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let mut connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
        connection.be_patient();
        let works = (0..5).all(|_| connection.works());
        over.store(true, Ordering::Relaxed);
        works
    })
}

#[test]
fn a_stream_opens_though_its_two_ways_pass_different_nodes() {
    require_nft!();
    assert!(opens_with_answers_by_the_right());
}

/// What the left node does of windows before, while and after one message from the client passes the right one: as a
/// source that redirects, and gives up then.
#[derive(Clone, Copy, PartialEq)]
enum Windows {
    /// It checks them all the time.
    Checked,
    /// Not from before that message on.
    Relaxed,
    /// Not from before that message on, and then again.
    PutBack,
}

fn survives_a_gap(windows: Windows) -> bool {
    let stage = Stage::new();
    let mut connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    assert!(connection.works());
    let read = entries(&stage.left);
    let flows = [read[0].flow()];
    table(&stage.right).add(&read, Existing::Keep).unwrap();
    let mut left = table(&stage.left);
    if windows != Windows::Checked {
        left.set_liberal(&flows, true).unwrap();
    }
    stage.client_sends_by(2);
    connection.near.write_all(&[7; 10]).unwrap();
    crate::support::wait_until("it has arrived", || {
        connection.far.peek(&mut [0; 10]).unwrap() == 10
    });
    stage.client_sends_by(1);
    connection.far.read_exact(&mut [0; 10]).unwrap();
    if windows == Windows::Checked {
        // Nobody acknowledged it, so the client sends it again, by the left node, which so gets to know it.
        connection.be_patient();
    } else {
        assert!(connection.works_backwards());
    }
    if windows == Windows::PutBack {
        left.set_liberal(&flows, false).unwrap();
    }
    (0..20).all(|_| connection.works() && connection.works_backwards())
}

#[test]
fn windows_that_were_relaxed_over_a_gap_stay_relaxed_for_good() {
    require_nft!();
    assert!(survives_a_gap(Windows::Checked));
    assert!(survives_a_gap(Windows::Relaxed));
    // What is sent again is invalid, too.
    assert!(!survives_a_gap(Windows::PutBack));
}

#[test]
fn a_stream_from_the_server_keeps_the_address_that_it_had_outside() {
    require_nft!();
    let stage = Stage::new();
    let mut connection =
        Connection::open(&stage.server, "192.0.2.9:443", &stage.client, "0.0.0.0:443");
    let outside = connection.far.peer_addr().unwrap();
    assert_eq!(outside.ip().to_string(), "203.0.113.7");
    assert!(connection.works());
    let read = entries(&stage.left);
    table(&stage.right).add(&read, Existing::Keep).unwrap();
    stage.go(2);
    assert!(connection.works() && connection.works_backwards());
    let there = entries(&stage.right);
    assert_eq!(there[0].reply, read[0].reply, "the same port outside");
}

#[test]
fn a_reset_is_understood_by_the_node_that_was_told_of_the_stream() {
    require_nft!();
    let stage = Stage::new();
    let connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    let read = entries(&stage.left);
    table(&stage.right).add(&read, Existing::Keep).unwrap();
    stage.go(2);
    // Closing with something unread sends a reset.
    let Connection { mut near, far } = connection;
    near.write_all(&[1; 100]).unwrap();
    crate::support::wait_until("it has arrived", || far.peek(&mut [0; 100]).unwrap() == 100);
    drop(far);
    assert!(near.read(&mut [0]).is_err(), "reset");
    assert_eq!(
        entries(&stage.right)[0].tcp.unwrap().state,
        tcp_state::CLOSE
    );
}

#[test]
fn datagrams_are_answered_from_the_services_address() {
    require_nft!();
    let stage = Stage::new();
    let bind = |net: &Net, address: &str| {
        let socket = net.netns.run(|| UdpSocket::bind(address).unwrap()).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    };
    let (near, far) = (
        bind(&stage.client, "192.0.2.9:40000"),
        bind(&stage.server, "10.244.0.5:5353"),
    );
    near.send_to(b"?", "10.96.0.10:53").unwrap();
    let (_, client) = far.recv_from(&mut [0; 8]).unwrap();
    let read = entries(&stage.left);
    assert_eq!(read[0].status & status::SEEN_REPLY, 0);
    table(&stage.right).add(&read, Existing::Keep).unwrap();
    stage.go(2);
    far.send_to(b"!", client).unwrap();
    let (_, answered_by) = near.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(answered_by.to_string(), "10.96.0.10:53");
}

#[test]
fn what_is_there_already_is_updated_kept_or_left_alone() {
    require_nft!();
    let stage = Stage::new();
    let mut connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    assert!(connection.works());
    let read = entries(&stage.left);
    let mut right = table(&stage.right);
    let mut old = read[0].clone();
    old.status &= !(status::SEEN_REPLY | status::ASSURED);
    old.tcp.as_mut().unwrap().state = 1;
    old.mark = 1;
    old.timeout = 30;
    assert_eq!(right.add(&[old], Existing::Keep).unwrap(), [Added::New]);
    assert_eq!(right.add(&read, Existing::Keep).unwrap(), [Added::Kept]);
    assert_eq!(entries(&stage.right)[0].mark, 1);
    assert_eq!(
        right.add(&read, Existing::Update).unwrap(),
        [Added::Updated]
    );
    let there = entries(&stage.right);
    assert_eq!(without_windows(&there[0]), without_windows(&read[0]));
    stage.go(2);
    assert!(connection.works_backwards());

    let mut otherwise = read[0].clone();
    otherwise.reply.source = "10.244.0.6".parse().unwrap();
    let mut taken = read[0].clone();
    taken.original.destination = "10.96.0.11".parse().unwrap();
    assert_eq!(
        right.add(&[otherwise, taken], Existing::Update).unwrap(),
        [
            Added::Refused(Refusal::TranslatedOtherwise),
            Added::Refused(Refusal::AnswersTaken)
        ]
    );
    assert_eq!(entries(&stage.right).len(), 1);
}

#[test]
fn only_what_was_asked_for_is_removed() {
    require_nft!();
    let stage = Stage::new();
    let connections = [
        stage.connect("10.244.0.5:8080", "10.96.0.10:80"),
        stage.connect("[fd00:244::5]:8080", "[fd00:96::10]:80"),
    ];
    let read = entries(&stage.left);
    let mut right = table(&stage.right);
    right.add(&read, Existing::Keep).unwrap();
    assert_eq!(right.list(Family::V4).unwrap().len(), 1);
    assert_eq!(right.list(Family::V6).unwrap().len(), 1);
    assert_eq!(right.remove(&[read[0].flow()]).unwrap(), 1);
    assert_eq!(right.remove(&[read[0].flow()]).unwrap(), 0, "gone already");
    let left = right.list(Family::Both).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].flow(), read[1].flow());
    drop(connections);
}

#[test]
fn the_kernel_tells_of_what_begins() {
    require_nft!();
    let stage = Stage::new();
    let mut news = stage
        .left
        .netns
        .run(|| News::subscribe().unwrap())
        .unwrap()
        .expect("news");
    let nothing = Begun {
        entries: vec![],
        complete: true,
    };
    assert_eq!(news.take().unwrap(), nothing);
    let _connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    let Begun {
        entries: begun,
        complete,
    } = news.take().unwrap();
    assert!(complete);
    let flows: Vec<_> = begun.iter().map(Entry::flow).collect();
    let there = entries(&stage.left);
    assert_eq!(flows, [there[0].flow()]);
    assert!(
        begun[0].concerns(&["10.244.0.5".parse().unwrap()]),
        "by its answers"
    );
    assert_eq!(
        table(&stage.left).read(&flows).unwrap()[0].reply,
        there[0].reply
    );
    assert_eq!(news.take().unwrap(), nothing, "once");
    stage.left.sysctl("netfilter/nf_conntrack_events", "0");
    let none = stage.left.netns.run(|| News::subscribe().unwrap()).unwrap();
    assert!(none.is_none());
}

#[test]
fn zones_and_marks_and_a_missing_helper() {
    require_nft!();
    let stage = Stage::new();
    let _connection = stage.connect("10.244.0.5:8080", "10.96.0.10:80");
    let mut entry = entries(&stage.left).remove(0);
    entry.zone = 7;
    entry.helper = Some("nothing-like-it".into());
    let mut right = table(&stage.right);
    assert_eq!(
        right.add(&[entry.clone()], Existing::Keep).unwrap(),
        [Added::WithoutHelper]
    );
    let there = right.find(&entry.flow()).unwrap().unwrap();
    assert_eq!((there.zone, there.mark), (7, 0x4000));
    entry.zone = 0;
    assert_eq!(
        right.find(&entry.flow()).unwrap(),
        None,
        "in that zone only"
    );
}
