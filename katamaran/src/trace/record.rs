//! What a trace tells, in the form in which `--json` writes it. docs/trace.md describes the fields.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::hop::Hop;

/// One line of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Record {
    /// The trace watches from here on.
    Start(Start),
    /// A packet was dropped.
    Drop(Box<Dropped>),
    /// Counters of a migration's hooks have changed.
    Hooks(Hooks),
    /// Drops were not told.
    Lost(Lost),
    /// The last line.
    Summary(Summary),
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start {
    pub schema: u32,
    pub time: String,
    pub vm_ips: Vec<IpAddr>,
    /// Whether the kernel shows where its functions are.
    pub symbols: bool,
}

/// Where and why packets are dropped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    pub reason: String,
    pub hop: Hop,
    pub symbol: Option<String>,
    pub location: String,
    pub device: Option<String>,
    pub ifindex: Option<u32>,
    pub netns: Option<String>,
    pub netns_inode: Option<u32>,
    pub qdisc: Option<String>,
    pub direction: Direction,
    pub tunnel: Option<&'static str>,
}

/// To or from the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    ToVm,
    FromVm,
}

/// One packet, or one super-packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dropped {
    pub time: String,
    #[serde(flatten)]
    pub place: Place,
    #[serde(flatten)]
    pub packet: Packet,
}

/// Which packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Packet {
    pub source: IpAddr,
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub destination_port: Option<u16>,
    pub protocol: String,
    pub tcp_flags: Option<String>,
    pub fragment: bool,
    /// Of the IP packet, in bytes.
    pub length: u32,
    /// On the wire.
    pub packets: u64,
}

/// What the hooks of a session have counted since the last record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hooks {
    pub time: String,
    pub session: String,
    pub role: &'static str,
    pub mode: Option<&'static str>,
    /// By counter; only those that have changed.
    pub counters: BTreeMap<&'static str, Change>,
}

/// Of one counter, in packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub more: u64,
    pub total: u64,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    pub time: String,
    #[serde(flatten)]
    pub counts: LostCounts,
}

/// Packets that were dropped and are missing in what was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LostCounts {
    /// In the totals, but not told one by one: the ring was full.
    pub untold: u64,
    /// Not even in the totals: too many places and reasons.
    pub uncounted: u64,
    /// Drops, of whomever, that happened inside of the program itself.
    pub missed: Option<u64>,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub time: String,
    pub duration_s: f64,
    /// Packets of the VM that were dropped, told or not.
    pub packets: u64,
    /// By reason.
    pub reasons: BTreeMap<String, u64>,
    /// By place and reason, the most frequent first.
    pub places: Vec<PlaceTotal>,
    /// Copies and pieces of packets, which are no loss and in none of the above.
    pub no_loss: u64,
    /// Packets that were told one by one.
    pub told: u64,
    pub lost: LostCounts,
}

/// One row of the totals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlaceTotal {
    #[serde(flatten)]
    pub place: Place,
    pub meaning: Option<&'static str>,
    pub packets: u64,
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::dropped;
    use super::*;

    #[test]
    fn a_drop_is_one_flat_object() {
        let record = Record::Drop(Box::new(dropped()));
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "event": "drop",
                "time": "2026-11-22T09:12:33.123456Z",
                "reason": "QDISC_DROP",
                "hop": "qdisc",
                "symbol": "__dev_queue_xmit+0x9f",
                "location": "0xffffffff81234567",
                "device": "vtap",
                "ifindex": 4,
                "netns": "node-a",
                "netns_inode": 4_026_532_001_u32,
                "qdisc": "tbf 8001:",
                "direction": "to-vm",
                "tunnel": null,
                "source": "10.80.0.2",
                "source_port": 40000,
                "destination": "10.90.0.5",
                "destination_port": 7777,
                "protocol": "UDP",
                "tcp_flags": null,
                "fragment": false,
                "length": 128,
                "packets": 1,
            })
        );
    }
}
