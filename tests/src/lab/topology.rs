//! The namespaces, links, addresses and routes of a lab.
//!
//! ```text
//!   client            fab (router)           a, b (nodes)              V, the guest
//!   eth0 10.0.0.2 --- port-c 10.0.0.1
//!                     port-a 10.0.1.1 ------ eth0 10.0.1.2    tap0 ··· 10.244.0.5
//!                     port-b 10.0.2.1 ------ eth0 10.0.2.2    tap0 ··· (after the migration)
//! ```
//!
//! IPv6 is the same with fd00:10:0:N::1 and ::2 (N as in 10.0.N.0), and fd00:244::5 for V. V is routed as Calico
//! does it: a host route to the tap on the node, proxy ARP towards V, and one route in the fabric
//! that says at which node V is; the address of a service that V is behind (10.96.0.10, fd00:96::10) is routed to
//! the same node. What is between node and tap can be more than that: see [`Wiring`]. Nothing speaks on the taps by
//! itself: no router advertisements,
//! no duplicate address detection, no generated addresses.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::identity::Identity;
use super::netns::Netns;
use super::peer;
use super::wiring::{self, Wiring};
use super::{ECHO_PORT, LabConfig};

/// The places of a lab; each is one namespace. The pods are there where the wiring has them.
pub(crate) const PLACES: [&str; 6] = ["client", "fab", "a", "b", "pod-a", "pod-b"];

/// The client's addresses.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The client's addresses.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 2);
/// V's address.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
/// V's address.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 5);
/// The address of a service that V is behind.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The service's address.
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
/// The service's port, UDP and TCP.
pub const SERVICE_PORT: u16 = 80;
/// V's MAC address.
pub const GUEST_MAC: &str = "02:00:00:00:00:05";
/// The name of the tap on both nodes.
pub const TAP: &str = "tap0";
/// The name of the underlay device on both nodes.
pub const UNDERLAY: &str = "eth0";

/// The name of the namespace of one place of one lab.
pub(crate) fn netns_name(id: &str, place: &str) -> String {
    format!("kt{id}-{place}")
}

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// Where V is at the start.
    A,
    /// Where V is to go.
    B,
}

impl Node {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The last part of its namespace's name.
    #[must_use]
    pub fn place(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The fabric's device towards it.
    #[must_use]
    pub fn fabric_port(self) -> &'static str {
        match self {
            Self::A => "port-a",
            Self::B => "port-b",
        }
    }

    /// Its address on the node network.
    #[must_use]
    pub fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.subnet(), 2)
    }

    /// Its address on the node network.
    #[must_use]
    pub fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0, u16::from(self.subnet()), 0, 0, 0, 2)
    }

    fn subnet(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }
}

/// The namespaces of one lab, connected and addressed.
#[derive(Debug, Clone)]
pub struct Network {
    /// Where the traffic comes from.
    pub client: Netns,
    /// The router between all.
    pub fabric: Netns,
    /// The node where V starts.
    pub a: Netns,
    /// The node where V goes.
    pub b: Netns,
    /// V's own namespaces on A and on B, where the wiring has them.
    pub pods: Option<[Netns; 2]>,
    /// V's second network card.
    second: Option<Identity>,
    /// Programs on the nodes that are part of the wiring.
    programs: Vec<Arc<OwnedFd>>,
    /// A and B have changed places: see [`Network::swap_nodes`].
    swapped: bool,
}

pub(super) const FORWARDING: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

impl Network {
    /// Makes everything; `own` is told each namespace's name before it is made.
    pub(crate) fn create(id: &str, config: &LabConfig, own: impl Fn(&str)) -> Result<Self> {
        let make = |place: &str| {
            let name = netns_name(id, place);
            own(&name);
            let netns = Netns::create(&name)?;
            quiet(&netns)?;
            netns.ip("link set lo up")?;
            anyhow::Ok(netns)
        };
        let [client, fabric, a, b, pods @ ..] = PLACES;
        let mut network = Self {
            client: make(client)?,
            fabric: make(fabric)?,
            a: make(a)?,
            b: make(b)?,
            pods: match config.wiring.has_pod() {
                true => Some([make(pods[0])?, make(pods[1])?]),
                false => None,
            },
            second: config.second_nic.then(|| config.wiring.second()),
            programs: Vec::new(),
            swapped: false,
        };
        network.fabric.sysctl(&FORWARDING)?;
        network.cable(&network.client, "port-c", 0)?;
        for node in [Node::A, Node::B] {
            let port = node.fabric_port();
            network.cable(network.node(node), port, node.subnet())?;
            wiring::prepare(network.node(node), network.pod(node), config)?;
            if config.second_nic {
                wiring::prepare_second(network.node(node), network.pod(node), config)?;
            }
            if config.wiring == Wiring::PodPeer {
                let program = peer::attach(network.node(node))?;
                network.programs.push(Arc::new(program));
            }
            if config.guarded {
                network.guard(node)?;
            }
        }
        network.route_guest_to(Node::A)?;
        Ok(network)
    }

    /// The namespace of a node.
    #[must_use]
    pub fn node(&self, node: Node) -> &Netns {
        match node {
            Node::A => &self.a,
            Node::B => &self.b,
        }
    }

    /// Lets what has been A be B from now on, and the other way round: V is where it came to, and may go back.
    pub fn swap_nodes(&mut self) {
        std::mem::swap(&mut self.a, &mut self.b);
        if let Some(pods) = &mut self.pods {
            pods.swap(0, 1);
        }
        self.swapped = !self.swapped;
    }

    /// The node that this one was at first: it has that one's addresses and cable.
    #[must_use]
    pub fn first(&self, node: Node) -> Node {
        if self.swapped { node.other() } else { node }
    }

    /// V's own namespace on a node, where the wiring has one.
    #[must_use]
    pub fn pod(&self, node: Node) -> Option<&Netns> {
        let [a, b] = self.pods.as_ref()?;
        Some(match node {
            Node::A => a,
            Node::B => b,
        })
    }

    /// The namespace in which V's QEMU and tap are on a node.
    #[must_use]
    pub fn guest_netns(&self, node: Node) -> &Netns {
        self.pod(node).unwrap_or_else(|| self.node(node))
    }

    /// The namespaces of both nodes, with V's own.
    pub fn node_side(&self) -> impl Iterator<Item = &Netns> + Clone {
        [&self.a, &self.b]
            .into_iter()
            .chain(self.pods.iter().flatten())
    }

    /// Points the fabric's routes for V at a node: what a CNI does when it has converged.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn route_guest_to(&self, node: Node) -> Result<()> {
        if let Some(second) = &self.second {
            self.route_to(second, node)?;
        }
        self.route([GUEST_V4, SERVICE_V4], [GUEST_V6, SERVICE_V6], node)
    }

    /// The same for another VM.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn route_to(&self, vm: &Identity, node: Node) -> Result<()> {
        self.route([vm.v4], [vm.v6], node)
    }

    fn route<const N: usize>(
        &self,
        v4: [Ipv4Addr; N],
        v6: [Ipv6Addr; N],
        node: Node,
    ) -> Result<()> {
        let node = self.first(node);
        let mut lines = String::new();
        for (v4, v6) in v4.into_iter().zip(v6) {
            lines.push_str(&format!(
                "route replace {v4}/32 via {}\n-6 route replace {v6}/128 via {}\n",
                node.ipv4(),
                node.ipv6()
            ));
        }
        self.fabric.ip(&lines)
    }

    /// Rules as every node of a cluster has them: the service's address is translated to V's, and a firewall knows
    /// connections. They forget nothing and learn nothing in the middle: a connection that a node has not
    /// seen from its start is invalid to it.
    fn guard(&self, node: Node) -> Result<()> {
        let netns = self.node(node);
        let rules = format!(
            "table inet node {{
                chain translate {{
                    type nat hook prerouting priority dstnat ;
                    ip daddr {SERVICE_V4} tcp dport {SERVICE_PORT} dnat ip to {GUEST_V4}:{ECHO_PORT}
                    ip daddr {SERVICE_V4} udp dport {SERVICE_PORT} dnat ip to {GUEST_V4}:{ECHO_PORT}
                    ip6 daddr {SERVICE_V6} tcp dport {SERVICE_PORT} dnat ip6 to [{GUEST_V6}]:{ECHO_PORT}
                }}
                chain forward {{
                    type filter hook forward priority filter ;
                    ct state invalid counter drop
                    ct state established,related accept
                    ct state new counter accept
                }}
            }}"
        );
        netns.command("nft", &[&rules])?;
        netns.sysctl(&[("netfilter/nf_conntrack_tcp_loose", "0")])
    }

    /// Brings the fabric's end of a node's cable up again: the kernel has forgotten its IPv6 address.
    pub(super) fn mend(&self, node: Node) -> Result<()> {
        let (port, subnet) = (node.fabric_port(), node.subnet());
        self.fabric.ip(&format!(
            "link set {port} up
             -6 addr add fd00:10:0:{subnet:x}::1/64 dev {port} nodad"
        ))
    }

    /// A veth between `netns` (eth0, host 2) and the fabric (`port`, host 1).
    fn cable(&self, netns: &Netns, port: &str, subnet: u8) -> Result<()> {
        let fabric = self.fabric.name();
        netns.ip(&format!(
            "link add eth0 type veth peer name {port} netns {fabric}"
        ))?;
        let (v4, v6) = (format!("10.0.{subnet}"), format!("fd00:10:0:{subnet:x}:"));
        self.fabric.ip(&format!(
            "addr add {v4}.1/24 dev {port}
             -6 addr add {v6}:1/64 dev {port} nodad
             link set {port} up"
        ))?;
        netns.ip(&format!(
            "addr add {v4}.2/24 dev eth0
             -6 addr add {v6}:2/64 dev eth0 nodad
             link set eth0 up
             route add default via {v4}.1
             -6 route add default via {v6}:1"
        ))?;
        // Real super-packets: segments are merged on arrival and split as late as can be.
        netns.command("ethtool", &["-K", "eth0", "gro", "on", "tso", "on"])?;
        self.fabric
            .command("ethtool", &["-K", port, "gro", "on", "tso", "on"])?;
        Ok(())
    }
}

/// No packets that nobody asked for, and no filter that drops what takes an unusual way.
fn quiet(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/autoconf", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
    ])
}

/// Six hex digits that no other lab has.
pub(crate) fn fresh_id() -> Result<String> {
    use std::hash::{BuildHasher, RandomState};
    for attempt in 0..100_u32 {
        let id = format!("{:06x}", RandomState::new().hash_one(attempt) & 0xff_ffff);
        let taken = |place| {
            std::path::Path::new("/run/netns")
                .join(netns_name(&id, place))
                .exists()
        };
        if !PLACES.into_iter().any(taken) {
            return Ok(id);
        }
    }
    bail!("no free lab id in 100 attempts")
}

/// Reads one counter of a device, such as `tx_packets`.
///
/// # Errors
///
/// When the device or the counter does not exist.
pub fn device_counter(netns: &Netns, device: &str, counter: &str) -> Result<u64> {
    let text = netns.command("ip", &["-j", "-s", "-s", "link", "show", "dev", device])?;
    let links: serde_json::Value = serde_json::from_str(&text).context("parse ip's JSON")?;
    let (way, name) = counter
        .split_once('_')
        .context("a counter is named rx_… or tx_…")?;
    links[0]["stats64"][way][name]
        .as_u64()
        .with_context(|| format!("{device} has no counter {counter}"))
}
