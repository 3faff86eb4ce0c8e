//! How the VM hangs on the node's network, as the migration finds it.

use super::check::{Area, Check};
use super::found::Found;
use super::qemu::Qemu;
use crate::config::{CommonConfig, PreflightConfig, SourceConfig};
use crate::discover;
use crate::ebpf;
use crate::migrate::chain;
use crate::migrate::node::Node;
use crate::migrate::source::prepare::find_hook;
use crate::net::link::{LinkInfo, MacAddr};
use crate::net::tapfd::TapQueues;
use crate::net::{NetNs, Netlink};

const AREA: Area = Area::Wiring;

/// What was found.
#[derive(Default)]
pub(super) struct Wiring {
    pub(super) node: Option<Node>,
    pub(super) tap: Option<LinkInfo>,
    pub(super) mac: Option<MacAddr>,
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
        match node.vm_mac().await {
            Ok(mac) => {
                found.push(Check::ok(AREA, "nic", format!("one, {mac}")));
                wiring.mac = Some(mac);
            }
            Err(error) => found.push(Check::missing(
                AREA,
                "nic",
                chain(&error),
                "Only a VM with one NIC, of a model that tells its address (virtio-net does), is migrated.",
            )),
        }
    }
    if let Some(source) = &config.source
        && !config.is_node_only()
    {
        let check = redirect_device(source, netlink, &wiring).await;
        found.push(check);
    }
    wiring
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
    let seen = node
        .qemu_pid
        .and_then(|pid| Some((pid, discover::tap(pid, Some(&node.tap.name)).ok()?)));
    let reader = match &seen {
        Some((_, tap)) if tap.vhost => ", read by vhost-net",
        Some(_) => ", read by QEMU",
        None => "",
    };
    let place = match node.tap_netns == node.netns {
        true => "in this network namespace".to_owned(),
        false => format!("in {}", node.tap_netns),
    };
    found.push(tap_check(&node.tap, &format!("{place}{reader}")));
    found.push(match &node.wiring {
        Ok(discover::Wiring::Node) => Check::ok(AREA, "attachment", in_the_node(&node).await),
        Ok(discover::Wiring::Pod(pod)) => Check::ok(
            AREA,
            "attachment",
            format!(
                "{} here is the veth of {} in the pod, which filters join with {}",
                pod.outside.name, pod.inside.name, node.tap.name
            ),
        ),
        Err(why) => Check::missing(
            AREA,
            "attachment",
            why,
            format!(
                "Run it in the node's network namespace for a Kata pod; for any other wiring in the tap's: nsenter \
                 --net={} katamaran ...",
                namespace_path(&node, common)
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
    Wiring {
        tap: Some(node.tap.clone()),
        node: Some(node),
        mac: None,
    }
}

async fn in_the_node(node: &Node) -> String {
    let Some(controller) = node.tap.controller else {
        return "the tap itself".to_owned();
    };
    match node.netlink.link_by_index(controller).await {
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

async fn redirect_device(config: &SourceConfig, netlink: &Netlink, wiring: &Wiring) -> Check {
    let name = "redirect-device";
    let wanted = config.redirect_dev.as_deref();
    let node = wiring.node.as_ref();
    let pod = node.is_some_and(|node| matches!(node.wiring, Ok(discover::Wiring::Pod(_))));
    if config.vm_ips.is_empty() && wanted.is_none() && !pod {
        let why = "it is found through the route to the VM, whose address was not given";
        return Check::unchecked(AREA, name, why, "Give --vm-ip, or --redirect-dev.");
    }
    let hook = match find_hook(netlink, node, wanted, &config.vm_ips, wiring.mac).await {
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
