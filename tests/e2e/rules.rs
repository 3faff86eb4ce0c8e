//! Rules that drop or copy V's marked packets in one place, and count them by themselves.
//!
//! A tap that carries traffic drops packets when a queueing discipline is added to it: what needs one
//! is put in place before the traffic begins, and the *marking* of packets is switched on and off.

use katamaran_tests::lab::{GUEST_V4, Netns};
use serde_json::Value;

use crate::tcx::Program;

/// The DSCP of marked packets: EF.
pub(crate) const DSCP: u8 = 0x2e;

/// A rule at work; gone with its namespace.
pub(crate) enum Rule {
    /// An nftables rule, alone in its table.
    Nft { netns: Netns, family: &'static str },
    /// A classic filter on the way out of a device.
    Filter { netns: Netns, device: &'static str },
    /// A program of our own.
    Program(Program),
}

impl Rule {
    /// Does `verdict` to forwarded packets that `matches` describes: an expression of nftables.
    pub(crate) fn nft(netns: &Netns, family: &'static str, matches: &str, verdict: &str) -> Self {
        for command in [
            format!("add table {family} e2e"),
            format!("add chain {family} e2e forwarded {{ type filter hook forward priority 0; }}"),
            format!("add rule {family} e2e forwarded {matches} ip dscp {DSCP} counter {verdict}"),
        ] {
            netns.command("nft", &[&command]).unwrap();
        }
        Self::Nft {
            netns: netns.clone(),
            family,
        }
    }

    /// Drops marked packets to V on their way out of a device, behind all programs that are attached
    /// there: a redirect to a device that is down, which the kernel makes a drop of.
    pub(crate) fn filter(netns: &Netns, device: &'static str, protocol: u8) -> Self {
        netns
            .ip("link add e2e-hole type veth peer name e2e-hole-end")
            .unwrap();
        let class = format!("{:#x}", DSCP << 2);
        let protocol = protocol.to_string();
        netns
            .command("tc", &["qdisc", "add", "dev", device, "clsact"])
            .unwrap();
        let mut filter = vec!["filter", "add", "dev", device, "egress"];
        filter.extend(["protocol", "ip", "u32", "match", "ip", "dsfield", &class]);
        filter.extend(["0xfc", "match", "ip", "protocol", &protocol, "0xff"]);
        filter.extend(["action", "mirred", "egress", "redirect", "dev", "e2e-hole"]);
        netns.command("tc", &filter).unwrap();
        Self::Filter {
            netns: netns.clone(),
            device,
        }
    }

    /// How many packets it has dealt with.
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Nft { netns, family } => {
                let listed = netns
                    .command("nft", &["-j", "list", "table", family, "e2e"])
                    .unwrap();
                let listed: Value = serde_json::from_str(&listed).unwrap();
                let objects = listed["nftables"].as_array().unwrap();
                let expressions = objects.iter().flat_map(|object| {
                    let expressions = object["rule"]["expr"].as_array();
                    expressions.into_iter().flatten()
                });
                expressions
                    .filter_map(|expression| expression["counter"]["packets"].as_u64())
                    .sum()
            }
            Self::Filter { netns, device } => {
                let shown = netns
                    .command(
                        "tc",
                        &["-s", "-j", "filter", "show", "dev", device, "egress"],
                    )
                    .unwrap();
                let shown: Value = serde_json::from_str(&shown).unwrap();
                let filters = shown.as_array().unwrap();
                let actions = filters.iter().flat_map(|filter| {
                    let actions = filter["options"]["actions"].as_array();
                    actions.into_iter().flatten()
                });
                actions
                    .filter_map(|action| action["stats"]["packets"].as_u64())
                    .sum()
            }
            Self::Program(program) => program.count(),
        }
    }
}

/// The expression for packets to V that are in no tunnel.
pub(crate) fn to_guest() -> String {
    format!("ip daddr {GUEST_V4}")
}
