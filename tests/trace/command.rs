//! The command as such: totals, ends, overflow, company.

use serde_json::Value;

use crate::require;
use crate::stage::{Stage, VM};
use crate::tracer::Tracer;

fn block(stage: &Stage) {
    stage.node.nft(
        "table inet t { chain f { type filter hook forward priority 0; udp dport 7777 drop; }; }",
    );
}

/// What the totals say of our own node: other tests may run.
fn total(summary: &Value, stage: &Stage, reason: &str) -> u64 {
    let places = summary["places"].as_array().unwrap();
    places
        .iter()
        .filter(|place| place["netns"] == stage.node.name() && place["reason"] == reason)
        .map(|place| place["packets"].as_u64().unwrap())
        .sum()
}

#[test]
fn totals_are_right_when_it_is_interrupted() {
    require!();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    stage.send(VM, 3);
    stage.receive(3);
    block(&stage);
    stage.send(VM, 7);
    let summary = tracer.interrupt();
    assert_eq!(total(&summary, &stage, "NETFILTER_DROP"), 7, "{summary:#}");
    assert!(summary["reasons"]["NETFILTER_DROP"].as_u64() >= Some(7));
    assert!(summary["duration_s"].as_f64() > Some(0.0));
    let meaning = summary["places"][0]["meaning"].as_str();
    assert!(meaning.is_some_and(|meaning| !meaning.is_empty()));
}

#[test]
fn it_ends_after_a_time_or_a_number_of_drops() {
    require!();
    let stage = Stage::new();
    let by_count = Tracer::start_with(&stage, &["--count", "4"]);
    let by_time = Tracer::start_with(&stage, &["--duration", "3"]);
    block(&stage);
    stage.send(VM, 9);
    let summary = by_count.summary();
    assert_eq!(summary["told"], 4, "{summary:#}");
    let summary = by_time.summary();
    assert_eq!(total(&summary, &stage, "NETFILTER_DROP"), 9, "{summary:#}");
    assert!(summary["duration_s"].as_f64() >= Some(3.0));
}

/// Told or not: each packet is in the totals, and what was not told is counted.
#[test]
fn what_overflows_the_ring_is_counted() {
    require!();
    let stage = Stage::new();
    let mut tracer = Tracer::start(&stage);
    block(&stage);
    // It does not get to read.
    tracer.stop();
    stage.send(VM, 20_000);
    tracer.go_on();
    let summary = tracer.interrupt();
    let untold = summary["lost"]["untold"].as_u64().unwrap();
    assert!(untold > 0, "20,000 events do not fit into the ring");
    assert_eq!(total(&summary, &stage, "NETFILTER_DROP"), 20_000);
    let told = summary["told"].as_u64().unwrap();
    assert_eq!(
        told + untold + summary["no_loss"].as_u64().unwrap(),
        summary["packets"].as_u64().unwrap(),
        "{summary:#}"
    );
}

#[test]
fn several_at_once_see_the_same() {
    require!();
    let stage = Stage::new();
    let tracers = [Tracer::start(&stage), Tracer::start(&stage)];
    block(&stage);
    stage.send(VM, 6);
    for tracer in tracers {
        let summary = tracer.interrupt();
        assert_eq!(total(&summary, &stage, "NETFILTER_DROP"), 6, "{summary:#}");
    }
}

#[test]
fn every_field_is_documented() {
    require!();
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/trace.md"));
    let document = document.unwrap();
    let stage = Stage::new();
    let tracer = Tracer::start(&stage);
    block(&stage);
    stage.send(VM, 1);
    let dropped = tracer.next_of("drop");
    let summary = tracer.interrupt();
    let records = [&dropped, &summary, &summary["places"][0], &summary["lost"]];
    for field in records
        .iter()
        .flat_map(|record| record.as_object().unwrap().keys())
    {
        assert!(
            document.contains(&format!("`{field}`")),
            "{field} is not documented"
        );
    }
}
