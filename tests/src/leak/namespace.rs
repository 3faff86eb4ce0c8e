//! The part of a snapshot that lives in one network namespace.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Netns;

/// Per-device settings that a redirect might be tempted to change.
const DEVICE_SYSCTLS: [&str; 5] = [
    "rp_filter",
    "forwarding",
    "accept_local",
    "proxy_arp",
    "send_redirects",
];

pub(super) fn lines(netns: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let links = json(netns, "ip", &["-d", "-j", "addr", "show"])?;
    for link in list(&links) {
        links_and_addresses(link, &mut lines);
        let device = text(&link["ifname"]);
        for hook in ["ingress", "egress"] {
            // Without clsact there is no such hook, and nothing on it.
            let filters = netns.command("tc", &["filter", "show", "dev", &device, hook]);
            for filter in filters.unwrap_or_default().lines() {
                lines.push(format!("filter {device} {hook} {}", place_left_out(filter)));
            }
        }
    }
    for qdisc in list(&json(netns, "tc", &["-j", "qdisc", "show"])?) {
        // Handle 0: is a device's default, which comes and goes with its carrier. A clsact stays where programs are filters: to take it
        // off would cost packets.
        let stays = text(&qdisc["kind"]) == "clsact" && !katamaran::ebpf::has_tcx();
        if text(&qdisc["handle"]) != "0:" && !stays {
            let mut qdisc = qdisc.clone();
            if let Some(fields) = qdisc.as_object_mut() {
                fields.remove("refcnt");
            }
            lines.push(format!("qdisc {qdisc}"));
        }
    }
    for family in ["-4", "-6"] {
        let args = [family, "-d", "-j", "route", "show", "table", "all"];
        lines.extend(list(&json(netns, "ip", &args)?).iter().filter_map(route));
        for rule in list(&json(netns, "ip", &[family, "-j", "rule", "show"])?) {
            lines.push(format!("rule {family} {rule}"));
        }
        for kind in [&["nud", "permanent"][..], &["proxy"]] {
            let args = [&[family, "neigh", "show"], kind].concat();
            for neighbour in netns.command("ip", &args)?.lines() {
                lines.push(format!("neighbour {}", neighbour.trim()));
            }
        }
    }
    for line in netns
        .command("nft", &["--stateless", "list", "ruleset"])?
        .lines()
    {
        lines.push(format!("nft {}", line.trim()));
    }
    netns.run(|| {
        sockets(&mut lines);
        sysctls(&mut lines)
    })??;
    Ok(lines)
}

/// A filter's line without the name of its place (`parent ffff:` or `ingress`).
///
/// The kernel tells all filters of an ingress qdisc by the name that the last of them was added with, also when that one is
/// gone again (`block->classid` in `tc_new_tfilter()`, net/sched/cls_api.c).
fn place_left_out(filter: &str) -> String {
    let words: Vec<&str> = filter.split_whitespace().collect();
    match words[..] {
        ["filter", "parent", "ffff:", ref rest @ ..]
        | ["filter", "ingress" | "egress", ref rest @ ..] => format!("filter {}", rest.join(" ")),
        _ => words.join(" "),
    }
}

fn links_and_addresses(link: &Value, lines: &mut Vec<String>) {
    let name = text(&link["ifname"]);
    let up = link["flags"]
        .as_array()
        .is_some_and(|flags| flags.contains(&"UP".into()));
    lines.push(format!(
        "link {name} index {} kind {} up {up} mtu {} address {} master {} promiscuity {}",
        link["ifindex"],
        text(&link["linkinfo"]["info_kind"]),
        link["mtu"],
        text(&link["address"]),
        text(&link["master"]),
        link["promiscuity"],
    ));
    lines.push(format!("txqueuelen {name} {}", link["txqlen"]));
    for address in list(&link["addr_info"]) {
        lines.push(format!(
            "address {name} {}/{}",
            text(&address["local"]),
            address["prefixlen"]
        ));
    }
}

/// Not the kernel's own routes: they follow addresses and carriers.
fn route(route: &Value) -> Option<String> {
    if route["protocol"] == "kernel" {
        return None;
    }
    let field = |name: &str| match &route[name] {
        Value::Null => String::new(),
        Value::String(value) => format!(" {name} {value}"),
        value => format!(" {name} {value}"),
    };
    let fields = ["gateway", "dev", "table", "metric", "protocol", "type"].map(field);
    Some(format!("route {}{}", text(&route["dst"]), fields.concat()))
}

/// What listens, and which packet sockets there are.
fn sockets(lines: &mut Vec<String>) {
    let table = |name: &str| {
        // A table is missing when its protocol is.
        let text = fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    for name in ["tcp", "tcp6"] {
        for line in table(name) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            // 0A is LISTEN.
            if let [_, local, _, "0A", ..] = columns[..] {
                lines.push(format!("listener {name} {local}"));
            }
        }
    }
    for name in ["udp", "udp6"] {
        for line in table(name) {
            if let Some(local) = line.split_whitespace().nth(1) {
                lines.push(format!("socket {name} {local}"));
            }
        }
    }
    for line in table("packet") {
        let inode = line
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned();
        lines.push(format!("packet socket {inode}"));
    }
    for line in table("unix") {
        if let Some(path) = line.split_whitespace().nth(7)
            && path.contains("katamaran")
            && !path.contains("katamaran-lab")
        {
            lines.push(format!("unix socket {path}"));
        }
    }
}

fn sysctls(lines: &mut Vec<String>) -> Result<()> {
    let devices = fs::read_dir("/proc/sys/net/ipv4/conf").context("list device sysctls")?;
    for device in devices.flatten() {
        for name in DEVICE_SYSCTLS {
            let value = fs::read_to_string(device.path().join(name)).unwrap_or_default();
            let device = device.file_name();
            lines.push(format!(
                "sysctl {} {name}={}",
                device.to_string_lossy(),
                value.trim()
            ));
        }
    }
    Ok(())
}

fn json(netns: &Netns, program: &str, args: &[&str]) -> Result<Value> {
    let output = netns.command(program, args)?;
    if output.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&output).with_context(|| format!("parse what {program} {args:?} says"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_the_same_by_whatever_name_its_place_goes() {
        let told = [
            "filter parent ffff: protocol all pref 49152 u32 chain 0 ",
            "filter ingress protocol all pref 49152 u32 chain 0 ",
            "filter protocol all pref 49152 u32 chain 0 ",
        ];
        for line in told {
            assert_eq!(
                place_left_out(line),
                "filter protocol all pref 49152 u32 chain 0"
            );
        }
        let action = "\taction order 1: mirred (Egress Redirect to device e1) stolen";
        assert_eq!(place_left_out(action), action.trim());
    }
}
