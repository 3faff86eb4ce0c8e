//! The way to the destination: is there one, how long may packets be, and which tunnel does a full packet of
//! the VM fit into.

use std::net::IpAddr;
use std::time::Duration;

use super::check::{Area, Check};
use super::found::Found;
use super::wiring::Wiring;
use crate::config::{PreflightConfig, SourceConfig, TunnelMode};
use crate::deadline;
use crate::ebpf;
use crate::migrate::chain;
use crate::migrate::error::MigrateError;
use crate::migrate::fit::{self, Carrier};
use crate::migrate::message::Tunnel;
use crate::migrate::source::prepare::find_underlays;
use crate::net::Netlink;
use crate::net::reach::{Passage, probe_path};
use crate::net::route::Underlay;

const AREA: Area = Area::Path;

/// The ways that were found, one for each of the destination's addresses.
pub(super) async fn look(
    config: &PreflightConfig,
    netlink: &Netlink,
    wiring: &Wiring,
    found: &mut Found,
) -> Vec<Underlay> {
    let Some(source) = &config.source else {
        return Vec::new();
    };
    if source.dest_ips.is_empty() {
        if config.is_node_only() {
            return Vec::new();
        }
        let why = "the destination's address was not given";
        found.push(Check::unchecked(AREA, "route", why, "Give --dest-ip."));
        return Vec::new();
    }
    let mut underlays = Vec::new();
    let mut passages = Vec::new();
    for peer in &source.dest_ips {
        let Some(first) = route(netlink, *peer, found).await else {
            continue;
        };
        let length = longest(source, wiring, &first);
        let passage = probe(netlink, &first, length).await;
        // The answer may have taught the kernel the path's real MTU.
        let underlay = match &passage {
            Some(Ok(Passage::TooBig)) => find(netlink, *peer).await.unwrap_or(first),
            _ => first,
        };
        passages.push(passed(&underlay, length, passage));
        underlays.push(underlay);
    }
    passages.into_iter().for_each(|check| found.push(check));
    tunnel(source, wiring, &underlays, found);
    underlays
}

async fn find(netlink: &Netlink, peer: IpAddr) -> Result<Underlay, MigrateError> {
    let mut found = find_underlays(netlink, &[peer]).await?;
    found
        .pop()
        .ok_or(MigrateError::OutOfStep { what: "a route" })
}

async fn route(netlink: &Netlink, peer: IpAddr, found: &mut Found) -> Option<Underlay> {
    let underlay = match find(netlink, peer).await {
        Ok(underlay) => underlay,
        Err(error) => {
            let remedy = "Give the destination's address on the node network with --dest-ip, and run it in the network \
                          namespace that has a route there.";
            found.push(Check::missing(AREA, "route", chain(&error), remedy));
            return None;
        }
    };
    let via = underlay
        .gateway
        .map_or(String::new(), |gateway| format!(" via {gateway}"));
    let text = format!(
        "{peer}: {} from {}{via}, MTU {}",
        underlay.device_name, underlay.local, underlay.mtu
    );
    let index = underlay.device;
    let ethernet = netlink.netns().run(move || ebpf::is_ethernet(index));
    found.push(match ethernet {
        Ok(Ok(false)) => Check::missing(
            AREA,
            "route",
            format!("{text}; {} is no Ethernet device", underlay.device_name),
            "The programs rely on an Ethernet header. Give an address of the destination that is reached through an \
             Ethernet device.",
        ),
        _ => Check::ok(AREA, "route", text),
    });
    Some(underlay)
}

/// The longest packet that would be sent there, in bytes: a full one of the VM, wrapped, or what fits.
fn longest(config: &SourceConfig, wiring: &Wiring, underlay: &Underlay) -> u32 {
    let Some(tap) = &wiring.tap else {
        return underlay.mtu;
    };
    let carrier = match config.common.tunnel {
        TunnelMode::Vxlan => Carrier::Vxlan,
        TunnelMode::Auto | TunnelMode::Ipip | TunnelMode::None => Carrier::Ip,
        TunnelMode::Gre => Carrier::Gre,
    };
    let wrapped = fit::of(
        carrier,
        &[underlay.peer],
        tap,
        std::slice::from_ref(underlay),
    );
    let needed = wrapped.first().map_or(underlay.mtu, |fit| fit.needed());
    needed.min(underlay.mtu)
}

async fn probe(
    netlink: &Netlink,
    underlay: &Underlay,
    length: u32,
) -> Option<Result<Passage, crate::net::NetError>> {
    let netns = netlink.netns().clone();
    let (local, peer) = (underlay.local, underlay.peer);
    let patience: Duration = deadline::PATH_PROBE;
    tokio::task::spawn_blocking(move || probe_path(&netns, local, peer, length, patience))
        .await
        .ok()
}

fn passed(
    underlay: &Underlay,
    length: u32,
    passage: Option<Result<Passage, crate::net::NetError>>,
) -> Check {
    let name = "path-mtu";
    let peer = underlay.peer;
    let advice = "If a link on the way has a smaller MTU than this node's, tell the kernel (ip route ... mtu N); full packets \
                  of the VM would be lost there without a word.";
    match passage {
        Some(Ok(Passage::Arrived)) => Check::ok(
            AREA,
            name,
            format!("a packet of {length} bytes arrives at {peer} in one piece"),
        ),
        Some(Ok(Passage::TooBig)) => Check::degraded(
            AREA,
            name,
            match underlay.mtu < length {
                true => format!(
                    "a packet of {length} bytes does not get to {peer}: the path takes {}",
                    underlay.mtu
                ),
                false => format!("a packet of {length} bytes does not get to {peer}"),
            },
            "A link on the way is narrower than this node's. Tell the kernel for good (ip route ... mtu N), for it forgets \
             what it learned after ten minutes.",
        ),
        Some(Ok(Passage::Silence)) => Check::unchecked(
            AREA,
            name,
            format!(
                "{peer} does not answer a packet of {length} bytes to an unused port: it, or the answer, was filtered, or it was too long"
            ),
            advice,
        ),
        Some(Err(error)) => Check::unchecked(AREA, name, chain(&error), advice),
        None => Check::unchecked(AREA, name, "the probe was given up", advice),
    }
}

fn tunnel(config: &SourceConfig, wiring: &Wiring, underlays: &[Underlay], found: &mut Found) {
    let name = "tunnel";
    let Some(tap) = &wiring.tap else {
        let why = "the MTU of the VM's tap is not known";
        found.push(Check::unchecked(AREA, name, why, "Give --qmp, or --tap."));
        return;
    };
    if underlays.is_empty() {
        return;
    }
    // Without the VM's addresses, those of the destination tell the families.
    let vm_ips: Vec<IpAddr> = match config.vm_ips.as_slice() {
        [] => underlays.iter().map(|u| u.peer).collect(),
        ips => ips.to_vec(),
    };
    let arithmetic = |carrier| {
        let fits = fit::of(carrier, &vm_ips, tap, underlays);
        let texts: Vec<String> = fits.iter().map(ToString::to_string).collect();
        (fits.iter().all(fit::Fit::fits), texts.join("; "))
    };
    let (_, by_program) = arithmetic(Carrier::Ip);
    let (vxlan_fits, by_vxlan) = arithmetic(Carrier::Vxlan);
    found.push(match fit::choose(config.common.tunnel, &vm_ips, tap, underlays) {
        Ok(Tunnel::Ip) => Check::ok(
            AREA,
            name,
            format!("IPIP/IP6IP6 by program: {by_program}. As vxlan: {by_vxlan}"),
        ),
        Ok(Tunnel::Gre) => Check::ok(AREA, name, format!("GRE by program: {}", arithmetic(Carrier::Gre).1)),
        Ok(Tunnel::Vxlan { .. }) if config.common.tunnel == TunnelMode::Vxlan && vxlan_fits => {
            Check::ok(AREA, name, format!("vxlan: {by_vxlan}"))
        }
        Ok(Tunnel::Vxlan { .. }) if vxlan_fits => Check::degraded(
            AREA,
            name,
            format!("vxlan: {by_vxlan}; IPIP does not fit: {by_program}"),
            "A vxlan device costs about twice as much per packet.",
        ),
        Ok(Tunnel::Vxlan { .. }) => Check::degraded(
            AREA,
            name,
            format!("vxlan, in fragments: {by_vxlan}; IPIP does not fit: {by_program}"),
            "Full packets travel in two pieces each while the VM moves, which costs about twice as much and is lost where \
             fragments are filtered. Give the VM's network a smaller MTU than the nodes'.",
        ),
        Ok(Tunnel::None) => Check::degraded(
            AREA,
            name,
            "none (--tunnel-mode none)",
            "Packets that reach the source after the VM has stopped are lost.",
        ),
        Err(error) => Check::missing(
            AREA,
            name,
            chain(&error),
            "Give the VM's network a smaller MTU, or the path a larger one; or let katamaran choose (--tunnel-mode auto).",
        ),
    });
}
