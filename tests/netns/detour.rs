//! The pair of devices between a pod and its node.

use katamaran::net::counters::CounterReader;
use katamaran::net::detour::Detour;
use katamaran::net::link::LinkKind;
use katamaran::net::names::detour_link;
use katamaran::net::packet::{FrameInjector, VnetHeader};
use katamaran::session_id::SessionId;

use crate::support::{Net, numbered_frame, require_root, wait_until};

const SESSION: SessionId = SessionId(0x0123_4567_89ab_cdef);

fn received(net: &Net, index: u32) -> u64 {
    let mut counters = CounterReader::open(&net.netns, index).unwrap();
    counters.read().unwrap().rx_packets
}

#[tokio::test]
async fn a_pair_carries_frames_to_the_node_says_nothing_by_itself_and_goes_on_both_sides() {
    require_root!();
    let (node, pod) = (Net::new(), Net::new());
    let name = detour_link(SESSION);
    // What a dead session of the same name has left does not keep it from being made.
    let stale = Detour::create(&node.netlink(), &pod.netlink(), SESSION, 1400).await;
    drop(stale.unwrap());
    let pair = Detour::create(&node.netlink(), &pod.netlink(), SESSION, 1400)
        .await
        .unwrap();
    for (net, index) in [(&node, pair.outside()), (&pod, pair.inside())] {
        let link = net.netlink().link_by_name(&name).await.unwrap();
        assert_eq!(
            (link.index, link.mtu, link.kind),
            (index, 1400, LinkKind::Veth)
        );
    }
    let mut injector = FrameInjector::open(&pod.netns, pair.inside()).unwrap();
    for number in 0..10 {
        injector
            .inject(VnetHeader::default(), &numbered_frame(number))
            .unwrap();
    }
    wait_until("frames on the node", || {
        received(&node, pair.outside()) >= 10
    });
    assert_eq!(
        (
            received(&node, pair.outside()),
            received(&pod, pair.inside())
        ),
        (10, 0)
    );
    pair.remove().await.unwrap();
    for net in [&node, &pod] {
        let gone = net.netlink().link_by_name(&name).await.unwrap_err();
        assert!(gone.already_gone(), "{gone}");
    }
}
