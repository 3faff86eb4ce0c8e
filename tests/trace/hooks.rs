//! Beside a migration: its hooks' counters are shown, and it is not disturbed.

use std::collections::BTreeSet;

use katamaran::ebpf::{AttachPreference, Encap, Outer, SourceDataplane, SourceSpec, TapLocation};
use katamaran::session_id::SessionId;

use crate::require;
use crate::stage::{Stage, VM};
use crate::tracer::Tracer;

/// The source's end of a migration to a node that is not there.
fn arm(stage: &Stage, attach: AttachPreference) -> SourceDataplane {
    let netns = u32::try_from(stage.node.netns().inode().unwrap()).unwrap();
    let hook = stage.node.ifindex("vm0");
    let spec = SourceSpec {
        session: SessionId(u64::from(std::process::id()) << 32 | u64::from(hook)),
        hook_ifindex: hook,
        pod: None,
        detour: None,
        netns_inum: netns,
        vm_addresses: vec![VM.parse().unwrap()],
        vm_mac: [2, 0, 0, 0, 0, 5],
        encap: Encap::Ip {
            outer: Outer::Ip,
            underlay_ifindex: stage.node.ifindex("up0"),
            local: vec!["10.80.0.1".parse().unwrap()],
            remote: vec!["10.80.0.2".parse().unwrap()],
            path_mtu: 1500,
            oversize_ifindex: None,
        },
        tap: TapLocation {
            netns_inum: netns,
            ifindex: hook,
        },
        attach,
    };
    stage.node.run(|| SourceDataplane::arm(&spec)).unwrap()
}

#[test]
fn the_hooks_counters_are_told_as_they_change() {
    require!();
    for attach in [AttachPreference::Auto, AttachPreference::Clsact] {
        let stage = Stage::new();
        let source = arm(&stage, attach);
        let tracer = Tracer::start(&stage);
        stage.send(VM, 5);
        stage.receive(5);
        let record = tracer.next_of("hooks");
        assert_eq!(
            (&record["role"], &record["mode"]),
            (&"source".into(), &"count".into())
        );
        assert_eq!(record["counters"]["passed"]["total"], 5, "{record:#}");

        // The client has no use for these packets: they are dropped there, in the tunnel.
        source.flip().unwrap();
        stage.send(VM, 4);
        let record = tracer.next_of("hooks");
        assert_eq!(record["mode"], "redirect");
        assert_eq!(record["counters"]["redirected"]["more"], 4, "{record:#}");
        assert_eq!(source.counters().unwrap().s3.packets, 4);
        let summary = tracer.interrupt();
        let in_tunnel = |place: &&serde_json::Value| {
            place["tunnel"] == "ipip" && place["netns"] == stage.client.name()
        };
        let places = summary["places"].as_array().unwrap();
        let lost: u64 = places
            .iter()
            .filter(in_tunnel)
            .map(|place| place["packets"].as_u64().unwrap())
            .sum();
        assert_eq!(lost, 4, "{summary:#}");
        stage.node.run(|| source.remove()).unwrap();
    }
}

/// A look at the hooks must not keep them: the last descriptor of a link would hold its program.
#[test]
fn hooks_that_are_removed_meanwhile_are_gone() {
    require!();
    let stage = Stage::new();
    let source = arm(&stage, AttachPreference::Auto);
    let tracer = Tracer::start(&stage);
    stage.send(VM, 1);
    tracer.next_of("hooks");
    stage.node.run(|| source.remove()).unwrap();
    let attached = || -> BTreeSet<u32> {
        use aya::programs::{SchedClassifier, TcAttachType};
        let query = stage
            .node
            .run(|| SchedClassifier::query_tcx("vm0", TcAttachType::Egress));
        query
            .map(|(_, programs)| programs.iter().map(|program| program.id()).collect())
            .unwrap_or_default()
    };
    assert_eq!(attached(), BTreeSet::new());
    tracer.interrupt();
}
