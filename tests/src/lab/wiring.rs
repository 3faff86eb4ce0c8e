//! How V's tap hangs on its node.
//!
//! ```text
//!   tap         node: tap0
//!   bridge      node: br0 --- tap0
//!   pod         node: vm0 ===veth=== pod: eth0 <-mirred-> tap0_kata
//!   pod-bridge  node: br0 --- vm0 ===veth=== pod: eth0 <-mirred-> tap0_kata
//!   pod-peer    as pod, but packets to V go from the underlay to the pod's eth0, past vm0
//! ```
//!
//! The device on the left of each is V's gateway: it has the routes to V's addresses, answers for V's neighbours,
//! and has the same Ethernet address on both nodes. A pod is what Kata makes of it with its tcfilter model: an
//! ingress qdisc on both devices, and a filter that sends every frame of the one out through the other.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::LabConfig;
use super::identity::Identity;
use super::netns::Netns;
use super::topology::{FORWARDING, TAP};

/// The node's end of a pod's veth.
pub const POD_VETH: &str = "vm0";
/// The bridge on a node.
pub const BRIDGE: &str = "br0";
/// The tap in a pod.
pub const POD_TAP: &str = "tap0_kata";
/// What a second network card of V adds: a tap, or in a pod (as Multus has it) `vm1 ===veth=== net1 <-mirred-> tap1_kata`.
const SECOND_TAP: &str = "tap1";
const SECOND_POD_TAP: &str = "tap1_kata";
const SECOND_POD_VETH: &str = "vm1";

/// V's way from its node's network to its tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wiring {
    /// The tap is in the node's namespace, and routed.
    #[default]
    Tap,
    /// The tap is a port of a bridge of the node.
    Bridge,
    /// Kata's: QEMU and tap are in a pod's namespace, whose veth is routed.
    Pod,
    /// The same, and the node's end of the veth is a port of a bridge.
    PodBridge,
    /// Kata's on a data path that goes past the node's end of the veth.
    PodPeer,
}

impl Wiring {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Tap,
        Self::Bridge,
        Self::Pod,
        Self::PodBridge,
        Self::PodPeer,
    ];

    /// Whether V has a namespace of its own on each node.
    #[must_use]
    pub fn has_pod(self) -> bool {
        !matches!(self, Self::Tap | Self::Bridge)
    }

    /// The tap's name.
    #[must_use]
    pub fn tap(self) -> &'static str {
        if self.has_pod() { POD_TAP } else { TAP }
    }

    /// V's second network card, routed whatever the first one's wiring is.
    #[must_use]
    pub fn second(self) -> Identity {
        Identity::second(if self.has_pod() {
            SECOND_POD_TAP
        } else {
            SECOND_TAP
        })
    }

    /// The node's device that leads to V and to nobody else.
    #[must_use]
    pub fn towards_guest(self) -> &'static str {
        if self.has_pod() { POD_VETH } else { TAP }
    }

    /// V's gateway.
    fn gateway(self) -> &'static str {
        match self {
            Self::Tap => TAP,
            Self::Bridge | Self::PodBridge => BRIDGE,
            Self::Pod | Self::PodPeer => POD_VETH,
        }
    }
}

impl fmt::Display for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tap => "tap",
            Self::Bridge => "bridge",
            Self::Pod => "pod",
            Self::PodBridge => "pod-bridge",
            Self::PodPeer => "pod-peer",
        })
    }
}

impl FromStr for Wiring {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|one| one.to_string() == text) {
            Some(wiring) => Ok(wiring),
            None => bail!(
                "unknown wiring {text}: {}",
                Self::ALL.map(|one| one.to_string()).join(", ")
            ),
        }
    }
}

/// Makes everything between a node's network and V's tap. `pod` is there where the wiring has one.
pub(super) fn prepare(node: &Netns, pod: Option<&Netns>, config: &LabConfig) -> Result<()> {
    let wiring = config.wiring;
    let gateway = wiring.gateway();
    node.sysctl(&FORWARDING)?;
    if gateway == BRIDGE {
        node.ip(&format!(
            "link add {BRIDGE} address ee:ee:ee:ee:ee:ee type bridge stp_state 0 mcast_snooping 0
             link set {BRIDGE} mtu {} addrgenmode none",
            config.tap_mtu
        ))?;
    }
    match pod {
        Some(pod) => make_pod(node, pod, [POD_VETH, "eth0"], &Identity::v(POD_TAP), config)?,
        None => make_tap(node, TAP, config)?,
    }
    let end = wiring.towards_guest();
    if gateway == BRIDGE {
        node.ip(&format!("link set {end} master {BRIDGE}"))?;
    } else {
        node.ip(&format!("link set {end} address ee:ee:ee:ee:ee:ee"))?;
    }
    if end != gateway {
        node.ip(&format!("link set {end} up"))?;
    }
    lead(node, gateway, &Identity::v(end))
}

/// Makes what V's second network card hangs on.
pub(super) fn prepare_second(node: &Netns, pod: Option<&Netns>, config: &LabConfig) -> Result<()> {
    let second = config.wiring.second();
    let Some(pod) = pod else {
        return prepare_beside(node, &second, config);
    };
    make_pod(node, pod, [SECOND_POD_VETH, "net1"], &second, config)?;
    node.ip(&format!(
        "link set {SECOND_POD_VETH} address ee:ee:ee:ee:ee:ee"
    ))?;
    lead(node, SECOND_POD_VETH, &second)
}

/// Makes another VM's tap, routed as V's is with [`Wiring::Tap`].
pub(super) fn prepare_beside(node: &Netns, vm: &Identity, config: &LabConfig) -> Result<()> {
    make_tap(node, &vm.tap, config)?;
    node.ip(&format!("link set {} address ee:ee:ee:ee:ee:ee", vm.tap))?;
    lead(node, &vm.tap, vm)
}

/// Makes a device the gateway of a VM.
fn lead(node: &Netns, gateway: &str, vm: &Identity) -> Result<()> {
    node.sysctl(&[
        (&format!("ipv4/conf/{gateway}/proxy_arp"), "1"),
        (&format!("ipv4/neigh/{gateway}/proxy_delay"), "0"),
        (&format!("ipv4/conf/{gateway}/forwarding"), "1"),
    ])?;
    node.ip(&format!(
        "link set {gateway} up
         -6 addr add fe80::1/64 dev {gateway} nodad
         route add {}/32 dev {gateway}
         -6 route add {}/128 dev {gateway}",
        vm.v4, vm.v6
    ))
}

fn make_tap(netns: &Netns, name: &str, config: &LabConfig) -> Result<()> {
    netns.ip(&format!(
        "tuntap add {name} mode tap vnet_hdr
         link set {name} mtu {} txqueuelen {} addrgenmode none",
        config.tap_mtu, config.tap_queue
    ))
}

/// Makes one network card's tap in a pod, and the veth that it is tied to: the node's end and the pod's.
fn make_pod(
    node: &Netns,
    pod: &Netns,
    [outer, inner]: [&str; 2],
    card: &Identity,
    config: &LabConfig,
) -> Result<()> {
    let tap = card.tap.as_str();
    make_tap(pod, tap, config)?;
    node.ip(&format!(
        "link add {outer} mtu {mtu} type veth peer name {inner} netns {} mtu {mtu} address {}
         link set {outer} addrgenmode none",
        pod.name(),
        card.mac,
        mtu = config.tap_mtu
    ))?;
    pod.ip(&format!(
        "link set {inner} addrgenmode none
         addr add {}/32 dev {inner}
         -6 addr add {}/128 dev {inner} nodad
         link set {tap} up
         link set {inner} up",
        card.v4, card.v6
    ))?;
    for (from, to) in [(inner, tap), (tap, inner)] {
        let run = |words: &str| {
            let words: Vec<&str> = words.split_whitespace().collect();
            pod.command("tc", &words).map(drop)
        };
        run(&format!("qdisc add dev {from} ingress"))?;
        run(&format!(
            "filter add dev {from} parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev {to}"
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiring_survives_text() {
        for wiring in Wiring::ALL {
            assert_eq!(wiring.to_string().parse::<Wiring>().unwrap(), wiring);
        }
        let error = "ovs".parse::<Wiring>().unwrap_err().to_string();
        assert!(error.contains("pod-bridge"), "{error}");
    }
}
