//! Many connections: what they cost, and what happens when there are too many.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use katamaran::conntrack::entry::{Tcp, Transport, Tuple, status, tcp_state};
use katamaran::conntrack::{Added, Entry, Existing, Family, Listing, News, Refusal, Table};
use katamaran::net::ways::Ways;
use nix::errno::Errno;

use crate::support::{Net, pair, require_root};

const VM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 5));
const OTHER_VM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 6));

/// The address of the service that a server answers for.
fn service(server: IpAddr) -> IpAddr {
    let last = if server == VM { 5 } else { 6 };
    Ipv4Addr::new(10, 96, 0, last).into()
}

/// The `number`th connection to a server.
fn entry(number: usize, server: IpAddr) -> Entry {
    let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
    let client = IpAddr::V4(Ipv4Addr::new(172, 16 | high, middle, low));
    let tuple = |source, destination, sport, dport| Tuple {
        source,
        destination,
        protocol: 6,
        transport: Transport::Ports {
            source: sport,
            destination: dport,
        },
        zone: None,
    };
    // Every other one is to a service.
    let translated = number % 2 == 1;
    let (target, translation) = match translated {
        true => (service(server), status::DST_NAT),
        false => (server, 0),
    };
    Entry {
        original: tuple(client, target, 40_000, 80),
        reply: tuple(server, client, 80, 40_000),
        zone: 0,
        status: status::CONFIRMED | status::SEEN_REPLY | status::ASSURED | translation,
        timeout: 600,
        mark: 0,
        labels: None,
        tcp: Some(Tcp {
            state: tcp_state::ESTABLISHED,
            scale: [7; 2],
            flags: [0x03; 2],
        }),
        sctp: None,
        helper: None,
        shifts: [None; 2],
        syn_proxy: None,
    }
}

fn entries(count: usize, server: IpAddr) -> Vec<Entry> {
    (0..count).map(|number| entry(number, server)).collect()
}

fn table(net: &Net) -> Table {
    net.netns.run(|| Table::open().unwrap()).unwrap()
}

#[track_caller]
fn add_all(table: &mut Table, entries: &[Entry]) {
    let added = table.add(entries, Existing::Keep).unwrap();
    let other = added.iter().find(|added| **added != Added::New);
    assert_eq!(other, None);
}

/// What `work` gave, and the milliseconds that it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let value = work();
    (value, began.elapsed().as_secs_f64() * 1000.0)
}

/// Prints what each step takes.
#[test]
fn many_connections_are_read_and_added_in_reasonable_time() {
    require_root!();
    for count in [1_000, 20_000, 100_000] {
        let (left, right) = (Net::new(), Net::new());
        let (mut source, mut destination) = (table(&left), table(&right));
        add_all(&mut source, &entries(count, VM));
        add_all(&mut source, &entries(1_000, OTHER_VM));
        let (listing, list_ms) = timed(|| source.list_of(Family::V4, &[VM], count).unwrap());
        let Listing { entries, beyond } = listing;
        assert_eq!((entries.len(), beyond), (count, 0));
        let flows: Vec<_> = entries.iter().map(Entry::flow).collect();
        let (relaxed, relax_ms) = timed(|| source.set_liberal(&flows, true).unwrap());
        assert_eq!(relaxed, count);
        let mut ways = left.netns.run(|| Ways::open().unwrap()).unwrap();
        let clients: Vec<_> = entries.iter().map(|e| e.original.source).collect();
        let (routes, route_ms) = timed(|| ways.to(&clients).unwrap());
        assert_eq!(routes.len(), count);
        let (text, write_ms) = timed(|| serde_json::to_string(&entries).unwrap());
        let (read, read_ms) = timed(|| serde_json::from_str::<Vec<Entry>>(&text).unwrap());
        let ((), add_ms) = timed(|| add_all(&mut destination, &read));
        let (removed, remove_ms) = timed(|| destination.remove(&flows).unwrap());
        assert_eq!(removed, count);
        println!(
            "{count}: list {list_ms:.0} ms, relax {relax_ms:.0}, routes {route_ms:.0}, write {write_ms:.0}, read \
             {read_ms:.0} ({} KiB), add {add_ms:.0}, remove {remove_ms:.0}",
            text.len() / 1024
        );
        assert!(list_ms + relax_ms + route_ms + add_ms < 60_000.0);
    }
}

#[test]
fn only_so_many_are_listed_and_the_rest_is_counted() {
    require_root!();
    let net = Net::new();
    let mut table = table(&net);
    add_all(&mut table, &entries(300, VM));
    add_all(&mut table, &entries(50, OTHER_VM));
    let listing = table.list_of(Family::V4, &[VM], 100).unwrap();
    assert_eq!((listing.entries.len(), listing.beyond), (100, 200));
    assert!(listing.entries.iter().all(|entry| entry.concerns(&[VM])));
    assert_eq!(table.fill().unwrap().used, 350);
}

#[test]
fn news_that_were_lost_are_noticed_once() {
    require_root!();
    let net = Net::new();
    let news = net.netns.run(|| News::subscribe().unwrap()).unwrap();
    let mut news = news.expect("this kernel tells news");
    add_all(&mut table(&net), &entries(60_000, VM));
    let begun = news.take().unwrap();
    assert!(!begun.complete, "{} were told", begun.entries.len());
    assert!(begun.entries.len() > 10_000, "{}", begun.entries.len());
    let begun = news.take().unwrap();
    assert!(begun.complete && begun.entries.is_empty());
}

#[test]
fn a_full_table_refuses_what_is_new_and_keeps_what_is_there() {
    require_root!();
    let net = Net::new();
    let mut table = table(&net);
    let Some(most) = table.fill().unwrap().most.filter(|most| *most <= 1 << 18) else {
        println!("SKIP: the kernel's table is too big to be filled");
        return;
    };
    let most = usize::try_from(most).unwrap();
    add_all(&mut table, &entries(most, VM));
    let one_more = entry(most + 1000, OTHER_VM);
    // The kernel may let some in that it has not counted yet.
    let refused = (0..100).find_map(|number| {
        let mut entry = one_more.clone();
        entry.zone = number;
        let added = table.add(&[entry], Existing::Keep).unwrap().remove(0);
        (added != Added::New).then_some(added)
    });
    let full = Refusal::Kernel(Errno::ENOMEM);
    assert_eq!(refused, Some(Added::Refused(full)));
    assert!(full.to_string().contains("nf_conntrack_max"), "{full}");
    let there = entry(7, VM);
    assert_eq!(
        table.add(&[there], Existing::Update).unwrap(),
        [Added::Updated]
    );
}

#[test]
fn routes_to_many_addresses_are_those_to_each() {
    require_root!();
    let (net, _other) = pair("d0", "d1", 1500);
    net.ip("addr add 192.0.2.1/24 dev d0");
    net.ip("route add 198.51.100.0/24 via 192.0.2.2");
    net.ip("route add unreachable 203.0.113.0/24");
    let mut ways = net.netns.run(|| Ways::open().unwrap()).unwrap();
    let addresses: Vec<IpAddr> = (0..1000)
        .map(|number| {
            let text = match number % 5 {
                0 => "192.0.2.1",
                1 => "192.0.2.77",
                2 => "198.51.100.9",
                3 => "203.0.113.9",
                _ => "fd00::1",
            };
            text.parse().unwrap()
        })
        .collect();
    let routes = ways.to(&addresses).unwrap();
    assert_eq!(routes.len(), 1000);
    for five in routes.chunks(5) {
        assert!(five[0].as_ref().unwrap().local);
        let on_link = five[1].as_ref().unwrap();
        assert!(!on_link.local && on_link.gateway.is_none());
        let gateway: IpAddr = "192.0.2.2".parse().unwrap();
        assert_eq!(five[2].as_ref().unwrap().gateway, Some(gateway));
        assert_eq!((&five[3], &five[4]), (&None, &None));
    }
    assert_eq!(ways.to(&[]).unwrap(), []);
}
