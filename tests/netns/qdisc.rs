//! Root queueing disciplines and the plug.

use std::time::Duration;

use katamaran::net::qdisc::PlugQdisc;

use crate::support::{Net, PATIENCE, TAP, Tap, number, pair, require_root, send_numbered};

#[tokio::test]
async fn any_root_qdisc_can_be_read() {
    require_root!();
    let (a, _b) = pair("left", "right", 1500);
    let netlink = a.netlink();
    let index = netlink.link_by_name("left").await.unwrap().index;
    let default = netlink.root_qdisc(index).await.unwrap();
    assert_eq!((default.kind.as_str(), default.major), ("noqueue", 0));
    for kind in [
        "pfifo limit 10",
        "tbf rate 1mbit burst 1600 limit 9000",
        "htb",
        "prio",
        "mq",
        "sfq",
    ] {
        let added = a.try_tc(&format!("qdisc add dev left root handle 7: {kind}"));
        if let Err(reason) = added {
            println!("not in this kernel: {kind}: {reason}");
            continue;
        }
        let found = netlink.root_qdisc(index).await.unwrap();
        assert_eq!(found.kind, kind.split(' ').next().unwrap());
        assert_eq!(found.major, 7);
        a.tc("qdisc del dev left root");
    }
}

#[tokio::test]
async fn a_qdisc_counts_what_it_holds_and_drops() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    net.tc(&format!(
        "qdisc add dev {TAP} root tbf rate 8bit burst 1600 limit 4600"
    ));
    send_numbered(&net, 0..300);
    let stats = net.netlink().root_qdisc(tap.index).await.unwrap();
    assert!(
        stats.qlen > 0 && stats.backlog == stats.qlen * 46 && stats.drops > 0,
        "{stats:?}"
    );
    assert_eq!(stats.packets + stats.qlen + stats.drops, 300);
}

#[tokio::test]
async fn a_device_that_is_gone_has_no_qdisc() {
    require_root!();
    let net = Net::new();
    let error = net.netlink().root_qdisc(4711).await.unwrap_err();
    assert!(error.already_gone(), "{error:?}");
}

/// The plug, or `None` with a line that says why where the kernel has none.
async fn plug(net: &Net, tap: &Tap, limit: u32) -> Option<PlugQdisc> {
    let netlink = net.netlink();
    let before = netlink.root_qdisc(tap.index).await.unwrap();
    match PlugQdisc::install(&netlink, tap.index, limit).await {
        Ok(plug) => Some(plug),
        Err(error) => {
            assert!(error.unsupported(), "{error:?}");
            assert!(error.to_string().contains("sch_plug"), "{error}");
            let after = netlink.root_qdisc(tap.index).await.unwrap();
            assert_eq!(
                after.kind, before.kind,
                "a failed installation changes nothing"
            );
            println!("SKIP the rest: {error}");
            None
        }
    }
}

#[tokio::test]
async fn a_plug_passes_blocks_and_releases_in_order() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let Some(plug) = plug(&net, &tap, 1 << 20).await else {
        return;
    };
    plug.check_live().await.unwrap();
    send_numbered(&net, 0..10);
    assert_eq!(tap.read_all().len(), 10, "pass-through after installation");
    plug.block().await.unwrap();
    send_numbered(&net, 10..110);
    assert!(tap.read_all().is_empty());
    let stats = plug.stats().await.unwrap();
    assert_eq!((stats.qlen, stats.drops), (100, 0));
    plug.release_indefinite().await.unwrap();
    let numbers: Vec<_> = tap.read_all().iter().map(|frame| number(frame)).collect();
    assert_eq!(numbers, (10..110).collect::<Vec<_>>());
    plug.remove(PATIENCE).await.unwrap();
    assert_ne!(
        net.netlink().root_qdisc(tap.index).await.unwrap().kind,
        "plug"
    );
}

#[tokio::test]
async fn a_plug_drops_and_counts_beyond_its_limit() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    let Some(plug) = plug(&net, &tap, 460).await else {
        return;
    };
    plug.block().await.unwrap();
    send_numbered(&net, 0..15);
    let stats = plug.stats().await.unwrap();
    assert_eq!((stats.qlen, stats.backlog, stats.drops), (10, 460, 5));
    plug.remove(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn removing_a_plug_puts_back_what_was_there() {
    require_root!();
    let net = Net::new();
    let tap = Tap::new(&net);
    net.tc(&format!(
        "qdisc add dev {TAP} root handle 7: pfifo limit 33"
    ));
    let Some(plug) = plug(&net, &tap, 1 << 20).await else {
        return;
    };
    plug.remove(PATIENCE).await.unwrap();
    let back = net.netlink().root_qdisc(tap.index).await.unwrap();
    assert_eq!((back.kind.as_str(), back.major), ("pfifo", 7));
}

#[tokio::test]
async fn a_plug_left_behind_is_taken_over() {
    require_root!();
    let net = Net::new();
    let mut tap = Tap::new(&net);
    let Some(stale) = plug(&net, &tap, 1 << 20).await else {
        return;
    };
    stale.block().await.unwrap();
    drop(stale);
    let plug = PlugQdisc::install(&net.netlink(), tap.index, 1 << 20)
        .await
        .unwrap();
    send_numbered(&net, 0..5);
    assert_eq!(tap.read_all().len(), 5);
    plug.remove(PATIENCE).await.unwrap();
}
