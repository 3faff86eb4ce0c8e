//! How the VM hangs on the node's network, as the migration finds it.

use super::check::{Area, Check};
use super::found::Found;
use super::qemu::Qemu;
use crate::config::{CommonConfig, PreflightConfig, SourceConfig};
use crate::discover;
use crate::ebpf;
use crate::migrate::chain;
use crate::migrate::error::MigrateError;
use crate::migrate::message::NicDescription;
use crate::migrate::nic::Nic;
use crate::migrate::node::Node;
use crate::migrate::source::prepare::{Way, find_hook, find_ways};
use crate::net::link::{LinkInfo, MacAddr};
use crate::net::tapfd::TapQueues;
use crate::net::{NetNs, Netlink};

const AREA: Area = Area::Wiring;

/// What was found.
#[derive(Default)]
pub(super) struct Wiring {
    pub(super) node: Option<Node>,
    /// Of several, the one with the largest MTU.
    pub(super) tap: Option<LinkInfo>,
    /// The VM's network cards, as the destination is told of them.
    pub(super) nics: Option<Vec<NicDescription>>,
}

pub(super) async fn look(
    config: &PreflightConfig,
    common: &CommonConfig,
    netlink: &Netlink,
    qemu: Option<&Qemu>,
    found: &mut Found,
) -> Wiring {
    let mut wiring = match qemu {
        Some(qemu) => through_qemu(common, qemu, found).await,
        None if common.tap.is_none() && config.is_node_only() => return Wiring::default(),
        None => by_name(common, netlink, found).await,
    };
    if let Some(node) = &wiring.node {
        found.push(nic_check(node));
    }
    if let Some(source) = &config.source
        && !config.is_node_only()
    {
        match &wiring.node {
            Some(node) if node.nics.len() > 1 => {
                wiring.nics = redirect_devices(source, node, found).await;
            }
            node => {
                let nic = node.as_ref().and_then(|node| node.nics.first());
                wiring.nics = nic.and_then(|nic| {
                    Some(vec![NicDescription {
                        addresses: source.vm_ips.clone(),
                        mac: nic.mac().ok()?.0,
                        tap_mtu: nic.tap.mtu,
                    }])
                });
                let check = redirect_device(source, netlink, nic).await;
                found.push(check);
            }
        }
    }
    wiring
}

fn nic_check(node: &Node) -> Check {
    let macs = node.nics.iter().map(|nic| Ok((nic.mac()?, nic)));
    match macs.collect::<Result<Vec<_>, MigrateError>>() {
        Ok(macs) if macs.len() == 1 => Check::ok(AREA, "nic", format!("one, {}", macs[0].0)),
        Ok(macs) => {
            let name = |(mac, nic): &(MacAddr, &Nic)| format!("{mac} ({})", nic.tap.name);
            let names: Vec<String> = macs.iter().map(name).collect();
            Check::ok(AREA, "nic", format!("{}: {}", macs.len(), names.join(", ")))
        }
        Err(error) => Check::missing(
            AREA,
            "nic",
            chain(&error),
            "Each NIC has to be of a model that tells its address (virtio-net does), with a tap.",
        ),
    }
}

/// Of a VM with several network cards.
async fn redirect_devices(
    config: &SourceConfig,
    node: &Node,
    found: &mut Found,
) -> Option<Vec<NicDescription>> {
    let name = "redirect-device";
    if config.vm_ips.is_empty() {
        let why = "which device leads to which of the VM's NICs is told by the routes to its addresses, which were not given";
        found.push(Check::unchecked(AREA, name, why, "Give --vm-ip."));
        return None;
    }
    match find_ways(node, config.redirect_dev.as_deref(), &config.vm_ips).await {
        Ok(ways) => {
            for way in &ways {
                let addresses: Vec<String> =
                    way.addresses.iter().map(ToString::to_string).collect();
                let text = format!(
                    "{} ({}), for {}",
                    way.hook,
                    way.hook.device.kind,
                    addresses.join(", ")
                );
                found.push(Check::ok(AREA, name, text));
            }
            Some(ways.iter().map(Way::describe).collect())
        }
        Err(error) => {
            let remedy = "Run it in the network namespace that routes to the VM, and name addresses of all its NICs with --vm-ip.";
            found.push(Check::missing(AREA, name, chain(&error), remedy));
            None
        }
    }
}

async fn through_qemu(common: &CommonConfig, qemu: &Qemu, found: &mut Found) -> Wiring {
    let (tap, tap_netns) = (common.tap.as_deref(), common.tap_netns.as_deref());
    let node = match Node::around(qemu.qmp.clone(), tap, tap_netns).await {
        Ok(node) => node,
        Err(error) => {
            found.push(Check::missing(
                AREA,
                "tap",
                chain(&error),
                "Name the VM's tap with --tap, and its network namespace with --tap-netns; run as root, so that QEMU's \
                 process can be looked into.",
            ));
            return Wiring::default();
        }
    };
    for nic in &node.nics {
        look_at_nic(&node, nic, common, found).await;
    }
    let taps = node.nics.iter().map(|nic| &nic.tap);
    Wiring {
        tap: taps.max_by_key(|tap| tap.mtu).cloned(),
        node: Some(node),
        nics: None,
    }
}

async fn look_at_nic(node: &Node, nic: &Nic, common: &CommonConfig, found: &mut Found) {
    let seen = node
        .qemu_pid
        .and_then(|pid| Some((pid, discover::tap(pid, Some(&nic.tap.name)).ok()?)));
    let reader = match &seen {
        Some((_, tap)) if tap.vhost => ", read by vhost-net",
        Some(_) => ", read by QEMU",
        None => "",
    };
    let place = match nic.tap_netns == node.netns {
        true => "in this network namespace".to_owned(),
        false => format!("in {}", nic.tap_netns),
    };
    found.push(tap_check(&nic.tap, &format!("{place}{reader}")));
    found.push(match &nic.wiring {
        Ok(discover::Wiring::Node) => Check::ok(AREA, "attachment", in_the_node(nic).await),
        Ok(discover::Wiring::Pod(pod)) => Check::ok(
            AREA,
            "attachment",
            format!(
                "{} here is the veth of {} in the pod, which filters join with {}",
                pod.outside.name, pod.inside.name, nic.tap.name
            ),
        ),
        Err(why) => Check::missing(
            AREA,
            "attachment",
            why,
            format!(
                "Run it in the node's network namespace for a Kata pod; for any other wiring in the tap's: nsenter \
                 --net={} katamaran ...",
                namespace_path(node, common)
            ),
        ),
    });
    if let Some((pid, tap)) = seen {
        found.push(match TapQueues::duplicate_fds(pid, &tap.name, &tap.descriptors) {
            Ok(_) => Check::ok(
                AREA,
                "tap-descriptors",
                format!("{} of QEMU's, can be read when it does not", tap.descriptors.len()),
            ),
            Err(error) => Check::degraded(
                AREA,
                "tap-descriptors",
                chain(&error),
                "What QEMU leaves unread in its tap can't be recovered, nor given back after an abort. It takes \
                 CAP_SYS_PTRACE.",
            ),
        });
    }
}

async fn in_the_node(nic: &Nic) -> String {
    let Some(controller) = nic.tap.controller else {
        return "the tap itself".to_owned();
    };
    match nic.netlink.link_by_index(controller).await {
        Ok(link) => format!("the tap, a port of {} ({})", link.name, link.kind),
        Err(error) => format!("the tap, a port of device {controller} ({})", chain(&error)),
    }
}

fn namespace_path(node: &Node, common: &CommonConfig) -> String {
    match (&common.tap_netns, node.qemu_pid) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(pid)) => format!("/proc/{pid}/ns/net"),
        (None, None) => "PATH".to_owned(),
    }
}

async fn by_name(common: &CommonConfig, netlink: &Netlink, found: &mut Found) -> Wiring {
    let Some(name) = &common.tap else {
        let why = "it is found through QEMU, which was not asked";
        found.push(Check::unchecked(AREA, "tap", why, "Give --qmp, or --tap."));
        return Wiring::default();
    };
    let elsewhere = common
        .tap_netns
        .as_ref()
        .map(|path| NetNs::open(path).and_then(|netns| netns.netlink()));
    let link = match elsewhere {
        None => netlink.link_by_name(name).await,
        Some(Ok(netlink)) => netlink.link_by_name(name).await,
        Some(Err(error)) => Err(error),
    };
    match link {
        Ok(link) => {
            let place = match &common.tap_netns {
                None => "in this network namespace".to_owned(),
                Some(path) => format!("in {}", path.display()),
            };
            found.push(tap_check(&link, &place));
            Wiring {
                tap: Some(link),
                ..Wiring::default()
            }
        }
        Err(error) => {
            let remedy = "Give the name of the VM's tap with --tap, and its network namespace with --tap-netns.";
            found.push(Check::missing(AREA, "tap", chain(&error), remedy));
            Wiring::default()
        }
    }
}

fn tap_check(tap: &LinkInfo, place: &str) -> Check {
    let text = format!(
        "{}, {place}, MTU {}, ring of {} packets",
        tap.name, tap.mtu, tap.txqlen
    );
    let drops = |state: &str, remedy: &str| {
        let found = format!("{text}, {state}");
        Check::missing(
            AREA,
            "tap",
            found,
            format!("It drops every packet. {remedy}"),
        )
    };
    if !tap.up {
        let remedy = format!("Set it up: ip link set {} up", tap.name);
        return drops("down", &remedy);
    }
    if !tap.carrier {
        return drops(
            "without carrier",
            "Start the VM's QEMU: nobody has the tap open.",
        );
    }
    Check::ok(AREA, "tap", text)
}

async fn redirect_device(config: &SourceConfig, netlink: &Netlink, nic: Option<&Nic>) -> Check {
    let name = "redirect-device";
    let wanted = config.redirect_dev.as_deref();
    let pod = nic.is_some_and(|nic| matches!(nic.wiring, Ok(discover::Wiring::Pod(_))));
    let mac = nic.and_then(|nic| nic.mac().ok());
    if config.vm_ips.is_empty() && wanted.is_none() && !pod {
        let why = "it is found through the route to the VM, whose address was not given";
        return Check::unchecked(AREA, name, why, "Give --vm-ip, or --redirect-dev.");
    }
    let hook = match find_hook(netlink, nic, wanted, &config.vm_ips, mac).await {
        Ok(hook) => hook,
        Err(error) => {
            let remedy = "Run it in the network namespace that routes to the VM, or name the device that leads to it \
                          with --redirect-dev.";
            return Check::missing(AREA, name, chain(&error), remedy);
        }
    };
    let text = format!("{hook} ({})", hook.device.kind);
    let index = hook.device.index;
    match netlink.netns().run(move || ebpf::is_ethernet(index)) {
        Ok(Ok(true)) => {
            let why = match wanted {
                Some(_) => "as --redirect-dev says",
                None if pod => "by the pod's wiring",
                None => "by the route to the VM",
            };
            Check::ok(AREA, name, format!("{text}, {why}"))
        }
        Ok(Ok(false)) => Check::missing(
            AREA,
            name,
            format!("{text} is no Ethernet device"),
            "The programs rely on an Ethernet header. Name another device that all packets for the VM go through with \
             --redirect-dev.",
        ),
        Ok(Err(error)) => Check::unchecked(AREA, name, chain(&error), "Has it just gone?"),
        Err(error) => Check::unchecked(AREA, name, chain(&error), "Run it as root."),
    }
}
