//! What the kernel drops of V's packets is seen, with the kernel's own reason.

use katamaran::ebpf::{PacketDrop, SourceCounters};

use crate::lab::{Lab, ROOMY, V4};
use crate::netns::{Netns, wait_until};
use crate::require::require;
use crate::traffic::{Receiver, Sender};
use crate::wire::Wire;

/// Classic BPF: the whole packet matches. (Blanks inside arguments are written `_`.)
const EVERYTHING: &str = "1,6_0_0_4294967295";
/// Classic BPF: byte 23 of the frame, the IPv4 header's protocol, is 4. Not the neighbour requests.
const TUNNELLED: &str = "4,48_0_0_23,21_0_1_4,6_0_0_4294967295,6_0_0_0";

/// Drops what matches on its way out of a device: sends it to one that is down.
fn drop_at(netns: &Netns, device: &str, matching: &str) {
    netns.ip("link add down0 type veth peer name down1");
    // Ours may be there already, on kernels without TCX.
    if !netns
        .command("tc", &format!("qdisc show dev {device}"))
        .contains("clsact")
    {
        netns.command("tc", &format!("qdisc add dev {device} clsact"));
    }
    let filter = format!("bpf bytecode {matching} action mirred egress redirect dev down0");
    netns.command(
        "tc",
        &format!("filter add dev {device} egress prio 9 {filter}"),
    );
}

#[test]
fn drops_on_the_way_to_the_tap_have_the_kernels_reason() {
    require!("drops_on_the_way_to_the_tap_have_the_kernels_reason");
    let lab = Lab::new(ROOMY);
    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, V4);
    let source = lab.arm_source(&lab.source_spec());
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    let reasons = || source.drops().unwrap().unwrap();

    // A firewall in the forward path: before our hook.
    lab.a.netns.command("nft", "add table inet ktmt");
    lab.a.netns.command(
        "nft",
        "add chain inet ktmt f { type filter hook forward priority 0 ; }",
    );
    lab.a
        .netns
        .command("nft", &format!("add rule inet ktmt f ip daddr {V4} drop"));
    sender.send(7, 100);
    wait_until("the firewall's drops are seen", || {
        count(&reasons(), "NETFILTER_DROP") == 7
    });
    lab.a.netns.command("nft", "delete table inet ktmt");

    // A filter on the tap: behind our hook.
    drop_at(&lab.a.netns, "vtap", EVERYTHING);
    sender.send(5, 100);
    wait_until("the filter's drops are seen", || {
        count(&reasons(), "TC_EGRESS") == 5
    });
    lab.a
        .netns
        .command("tc", "filter del dev vtap egress prio 9");

    // Nobody reads the tap, and its ring is short. The kernel's own frames (router solicitations,
    // neighbour probes) may take a place in it, or be dropped as well: not V's packets.
    drop(pump);
    lab.a.netns.ip("link set vtap txqueuelen 10");
    sender.send(30, 100);
    wait_until("the ring overflows", || {
        count(&reasons(), "FULL_RING") >= 20
    });
    let full = reasons()
        .into_iter()
        .find(|drop| drop.reason == "FULL_RING")
        .unwrap();
    assert_eq!(full.ifindex, lab.a.tap_location().ifindex);
    assert!(full.symbol.as_ref().unwrap().starts_with("tun_net_xmit"));
    let dropped = lab.a.netns.statistic("vtap", "tx", "dropped");
    assert!(
        full.packets <= 30 && full.packets <= dropped,
        "{full:?}, {dropped} in all"
    );
    lab.a.netns.run(|| source.remove()).unwrap();
}

#[test]
fn what_is_dropped_of_others_on_the_way_to_the_tap_is_not_missed() {
    require!("what_is_dropped_of_others_on_the_way_to_the_tap_is_not_missed");
    let lab = Lab::new(ROOMY);
    let _pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, V4);
    lab.a.netns.ip("route add 192.0.2.9/32 dev vtap");
    lab.a
        .netns
        .ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev vtap nud permanent");
    let mut to_others = Sender::new(&lab.a.netns, "192.0.2.9");
    let source = lab.arm_source(&lab.source_spec());
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    let counters = || source.counters().unwrap();
    let before = counters();

    drop_at(&lab.a.netns, "vtap", EVERYTHING);
    to_others.send(5, 100);
    wait_until("others pass the hook", || {
        counters().other.packets >= before.other.packets + 5
    });
    lab.a
        .netns
        .command("tc", "filter del dev vtap egress prio 9");
    sender.send(10, 100);
    wait_until("V has all of its own", || receiver.received() == 11);

    let after = counters();
    let offered = |c: &SourceCounters| c.offered.unwrap();
    let of_others = offered(&after).other.packets - offered(&before).other.packets;
    assert!(
        after.other.packets - before.other.packets >= of_others + 5,
        "{before:#?} {after:#?}"
    );
    assert_eq!(
        after.s2.packets - before.s2.packets,
        offered(&after).vm.packets - offered(&before).vm.packets,
        "{before:#?} {after:#?}"
    );
    assert_eq!(source.drops().unwrap().unwrap(), []);
    lab.a.netns.run(|| source.remove()).unwrap();
}

fn count(drops: &[PacketDrop], reason: &str) -> u64 {
    drops
        .iter()
        .filter(|drop| drop.reason == reason)
        .map(|drop| drop.packets)
        .sum()
}

#[test]
fn a_loss_in_the_tunnel_shows_in_counters_numbers_and_digests() {
    require!("a_loss_in_the_tunnel_shows_in_counters_numbers_and_digests");
    let lab = Lab::new(ROOMY);
    let _pump = lab.pump(&lab.b);
    let mut sender = Sender::new(&lab.client, V4);
    let destination = lab.arm_destination(&lab.destination_spec());
    let source = lab.arm_source(&lab.source_spec());
    source.flip().unwrap();
    sender.send(10, 100);
    wait_until("ten arrive", || {
        destination.counters().unwrap().d1.packets == 10
    });

    // The fabric loses three and repeats two.
    drop_at(&lab.fabric, "to82", TUNNELLED);
    sender.send(3, 100);
    wait_until("three are sent", || {
        source.counters().unwrap().s3.packets == 13
    });
    wait_until("three are lost", || {
        lab.fabric
            .command("tc", "-s filter show dev to82 egress")
            .contains(" 3 pkt")
    });
    lab.fabric
        .command("tc", "filter del dev to82 egress prio 9");
    let wire = Wire::open(&lab.fabric, "to82");
    sender.send(3, 100);
    wait_until("three arrive", || {
        destination.counters().unwrap().d1.packets == 13
    });
    let is_tunnelled = |frame: &[u8]| frame.get(12..15) == Some(&[8, 0, 0x45]) && frame[23] == 4;
    for frame in wire.record(3, is_tunnelled) {
        wire.send(&frame);
    }
    wait_until("three come twice", || {
        destination.counters().unwrap().d1.packets == 16
    });

    let (s, d) = (source.counters().unwrap(), destination.counters().unwrap());
    assert_eq!((s.s3.packets, d.d1.packets), (16, 16), "the counters agree");
    assert_ne!(s.digest_s3, d.digest_d1, "and the digests don't");
    assert_eq!((d.sequence_v4.skipped, d.sequence_v4.late), (3, 3));
    lab.disarm(source, destination);
}
