//! The ledger is not believed on its word: packets are dropped and copied on purpose, by rules that
//! count for themselves, and the ledger has to come to the same number at the right place.

use std::time::Duration;

use katamaran_tests::lab::{Node, TAP, UNDERLAY};
use katamaran_tests::run::{
    Client, ClientResult, Ended, Migration, MigrationOptions, Role, Stage, StageOptions,
    TrafficSpec,
};
use katamaran_tests::traffic::Mark;
use serde_json::Value;

use crate::rules::{DSCP, Rule, to_guest};
use crate::support::{both, report, require};
use crate::tcx::{Program, Way};

const UDP: u8 = 17;
const IPIP: u8 = 4;
/// Fewer than this many packets would prove little.
const ENOUGH: u64 = 10;

/// When a rule can be put in place.
enum When {
    /// Before any traffic: what the device would lose packets by.
    BeforeTraffic,
    /// Once both data paths are armed: what has to be ahead of katamaran's own programs.
    Armed,
}

/// One migration with a rule in the way.
struct Run {
    ended: Ended,
    client: ClientResult,
    /// What the rule has counted.
    count: u64,
}

impl Run {
    /// Migrates with marked packets from the moment when both data paths are armed until the network
    /// sends packets to B by itself. With `marked` off the rule finds nothing to deal with.
    fn play(when: &When, marked: bool, make: impl FnOnce(&Stage) -> Rule) -> Self {
        let traffic = TrafficSpec {
            pps_v4: 1000,
            mark: Some(Mark {
                every: 5,
                dscp: DSCP,
                at_once: false,
            }),
            ..TrafficSpec::default()
        };
        let mut stage = Stage::set(StageOptions {
            traffic: TrafficSpec {
                pps_v4: 0,
                ..traffic.clone()
            },
            ..StageOptions::default()
        })
        .unwrap();
        let mut make = Some(make);
        let mut rule = match when {
            When::BeforeTraffic => make.take().map(|make| make(&stage)),
            When::Armed => None,
        };
        let client = Client::start(&stage.lab, &traffic).unwrap();
        client.wait_for_more(200).unwrap();
        stage.client = Some(client);

        let required = vec!["--require-zero-drop".to_owned()];
        let options = MigrationOptions {
            source_args: required.clone(),
            dest_args: required,
            converge_after: Duration::from_millis(500),
            ..MigrationOptions::default()
        };
        let mut migration = Migration::begin(&mut stage, &options).unwrap();
        migration
            .look_until_logged(Role::Source, "phase=\"arm\"")
            .unwrap();
        rule = rule.or_else(|| make.take().map(|make| make(migration.stage)));
        set_marking(&migration, marked);
        migration
            .look_until("the network's convergence", |migration| {
                Ok(migration.timeline.converged_ns.is_some())
            })
            .unwrap();
        set_marking(&migration, false);
        let (ended, _) = migration.end().unwrap();
        let (client, silence) = stage.finish_traffic().unwrap();
        assert_eq!(silence, None, "{}", both(&ended));
        Self {
            ended,
            client,
            count: rule.unwrap().count(),
        }
    }

    fn report(&self) -> &Value {
        report(&self.ended.source)
    }

    fn all(&self) -> String {
        format!(
            "rule: {}, client: {:?}\n{}",
            self.count,
            self.client,
            both(&self.ended)
        )
    }

    /// Both sides say `verdict` and end with `status`; nothing is left behind.
    #[track_caller]
    fn assert_told(&self, verdict: &str, status: i32) {
        for side in [&self.ended.source, &self.ended.dest] {
            assert_eq!(side.status, Some(status), "{}", self.all());
            assert_eq!(report(side)["verdict"], verdict, "{}", self.all());
            assert_eq!(report(side)["outcome"], "migrated", "{}", self.all());
        }
        // A program in the way is not ours to remove.
        assert_eq!(self.ended.leaks, Vec::<String>::new(), "{}", self.all());
    }

    /// The one hop that does not balance, as (its name, lost, duplicated, the kernels' reasons).
    #[track_caller]
    fn imbalance(&self) -> (&str, u64, u64, String) {
        let imbalances = self.report()["ledger"]["imbalances"].as_array().unwrap();
        let [one] = &imbalances[..] else {
            panic!("not one imbalance: {imbalances:#?}\n{}", self.all())
        };
        let reasons = one["reasons"].as_array().unwrap();
        let reasons: Vec<&str> = reasons.iter().filter_map(Value::as_str).collect();
        (
            one["hop"].as_str().unwrap(),
            one["lost"].as_u64().unwrap(),
            one["duplicated"].as_u64().unwrap(),
            reasons.join(", "),
        )
    }

    /// The rule's drops, all of them and nothing else, are told at `hop`, with the kernel's `reason` where
    /// a node's kernel saw them.
    #[track_caller]
    fn assert_lost(&self, hop: &str, reason: Option<&str>) {
        assert!(self.count >= ENOUGH, "{}", self.all());
        assert_eq!(self.client.lost(), self.count, "{}", self.all());
        self.assert_told("violated", 3);
        let ledger = &self.report()["ledger"];
        let (at, lost, duplicated, reasons) = self.imbalance();
        assert_eq!(
            (at, lost, duplicated),
            (hop, self.count, 0),
            "{}",
            self.all()
        );
        assert_eq!(ledger["lost"], self.count, "{}", self.all());
        assert_eq!(ledger["duplicated"], 0, "{}", self.all());
        match reason {
            Some(reason) => assert!(reasons.contains(reason), "{reasons}\n{}", self.all()),
            None => assert_eq!(reasons, "", "{}", self.all()),
        }
        // A person is told as well.
        let summary = &self.ended.source.stdout;
        let line = format!("at {hop}: {} lost", self.count);
        assert!(summary.contains(&line), "{line}\n{}", self.all());
    }
}

fn set_marking(migration: &Migration<'_>, on: bool) {
    let client = migration.stage.client.as_ref();
    client.expect("the traffic is on").set_marking(on);
}

#[test]
fn packets_dropped_before_the_sources_hook_are_told_at_the_source_host() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, true, |stage| {
        Rule::nft(&stage.lab.network().a, "inet", &to_guest(), "drop")
    });
    run.assert_lost("source-host", Some("NETFILTER_DROP"));
}

#[test]
fn packets_dropped_behind_the_sources_hook_are_told_at_the_source_tap() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, true, |stage| {
        Rule::filter(&stage.lab.network().a, TAP, UDP)
    });
    run.assert_lost("source-tap", Some("TC_EGRESS"));
}

#[test]
fn packets_dropped_by_the_network_are_told_in_the_tunnel() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, true, |stage| {
        Rule::nft(
            &stage.lab.network().fabric,
            "inet",
            "meta l4proto 4",
            "drop",
        )
    });
    run.assert_lost("tunnel", None);
}

#[test]
fn packets_dropped_on_their_way_out_of_the_source_are_told_in_the_tunnel() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, true, |stage| {
        Rule::filter(&stage.lab.network().a, UNDERLAY, IPIP)
    });
    run.assert_lost("tunnel", Some("TC_EGRESS"));
}

#[test]
fn packets_dropped_as_they_reach_the_destination_are_told_in_the_tunnel() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::Armed, true, |stage| {
        let b = &stage.lab.network().b;
        Rule::Program(Program::attach(b, UNDERLAY, Way::In, IPIP))
    });
    run.assert_lost("tunnel", Some("TC_INGRESS"));
}

#[test]
fn packets_dropped_ahead_of_the_destinations_hook_are_told_at_the_destination_host() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::Armed, true, |stage| {
        let b = &stage.lab.network().b;
        Rule::Program(Program::attach(b, TAP, Way::Out, UDP))
    });
    run.assert_lost("destination-host", Some("TC_EGRESS"));
}

#[test]
fn packets_dropped_behind_the_destinations_hook_are_told_at_the_destination_tap() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, true, |stage| {
        Rule::filter(&stage.lab.network().b, TAP, UDP)
    });
    run.assert_lost("destination-tap", Some("TC_EGRESS"));
}

#[test]
fn packets_copied_by_the_network_are_told_as_duplicates() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, true, |stage| {
        let copy = format!(
            "dup to {} device \"{}\"",
            Node::B.ipv4(),
            Node::B.fabric_port()
        );
        Rule::nft(&stage.lab.network().fabric, "ip", "ip protocol 4", &copy)
    });
    assert!(run.count >= ENOUGH, "{}", run.all());
    let udp = run.client.udp_v4.as_ref().unwrap();
    assert_eq!((udp.duplicated, udp.lost), (run.count, 0), "{}", run.all());
    run.assert_told("violated", 3);
    let (hop, lost, duplicated, reasons) = run.imbalance();
    assert_eq!(
        (hop, lost, duplicated),
        ("tunnel", 0, run.count),
        "{}",
        run.all()
    );
    assert_eq!(reasons, "", "{}", run.all());
}

#[test]
fn rules_that_find_nothing_to_drop_change_nothing() {
    require!(Root, Bpf, Lab);
    let run = Run::play(&When::BeforeTraffic, false, |stage| {
        let network = stage.lab.network();
        Rule::nft(&network.fabric, "inet", "meta l4proto 4", "drop");
        Rule::nft(&network.a, "inet", &to_guest(), "drop");
        Rule::filter(&network.a, TAP, UDP);
        Rule::filter(&network.b, TAP, UDP)
    });
    assert_eq!(run.count, 0, "{}", run.all());
    assert!(run.client.is_perfect(), "{}", run.all());
    run.assert_told("proven", 0);
    assert_eq!(
        run.report()["ledger"]["imbalances"],
        Value::Array(Vec::new())
    );
}
