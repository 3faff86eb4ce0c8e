//! One network card of the VM on this node: its tap, and how that hangs on the node's network.

use super::error::{Doing as _, MigrateError, chain};
use super::node::{inum, refused};
use crate::discover::{self, Wiring};
use crate::ebpf::PodEnd;
use crate::net::link::{LinkInfo, MacAddr};
use crate::net::{NetNs, Netlink};

/// A tap, and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Nic {
    /// The node's own network namespace: the one this process was started in.
    pub(crate) netns: NetNs,
    pub(crate) netlink: Netlink,
    /// Where the tap is.
    pub(crate) tap_netns: NetNs,
    pub(crate) tap_netlink: Netlink,
    pub(crate) tap: LinkInfo,
    /// Of the card, or why it can't be told.
    pub(crate) mac: Result<MacAddr, String>,
    /// How the tap hangs on the node's network, or why that can't be told.
    pub(crate) wiring: Result<Wiring, String>,
}

impl Nic {
    /// Looks at the tap `name` in `tap_netns`, from the node's namespace. Changes nothing.
    ///
    /// # Errors
    /// No such tap, or it can't be looked at.
    pub(crate) async fn look(
        netns: &NetNs,
        netlink: &Netlink,
        tap_netns: NetNs,
        name: &str,
        mac: Result<MacAddr, String>,
    ) -> Result<Self, MigrateError> {
        let tap_netlink = tap_netns.netlink().doing("open netlink where the tap is")?;
        let tap = tap_netlink
            .link_by_name(name)
            .await
            .doing("look at the tap")?;
        let wiring = discover::wiring(netlink, &tap_netlink, &tap).await;
        Ok(Self {
            netns: netns.clone(),
            netlink: netlink.clone(),
            tap_netns,
            tap_netlink,
            tap,
            mac,
            wiring: wiring.map_err(|error| chain(&error)),
        })
    }

    /// The Ethernet address.
    ///
    /// # Errors
    /// It can't be told.
    pub(crate) fn mac(&self) -> Result<MacAddr, MigrateError> {
        self.mac.clone().map_err(refused)
    }

    /// The device of the node that leads to the VM and to nobody else: the tap itself, or the node's end of the
    /// pod's veth.
    ///
    /// # Errors
    /// It can't be told.
    pub(crate) fn last_device(&self) -> Result<&LinkInfo, MigrateError> {
        match &self.wiring {
            Ok(Wiring::Node) => Ok(&self.tap),
            Ok(Wiring::Pod(pod)) => Ok(&pod.outside),
            Err(why) => Err(refused(why)),
        }
    }

    /// The pod's end of the VM's veth, where there is a pod.
    pub(crate) fn pod_end(&self) -> Option<&LinkInfo> {
        match &self.wiring {
            Ok(Wiring::Pod(pod)) => Some(&pod.inside),
            Ok(Wiring::Node) | Err(_) => None,
        }
    }

    /// A device of the tap's namespace, for the programs.
    pub(crate) fn in_pod(&self, device: &LinkInfo) -> PodEnd {
        PodEnd {
            netns: self.tap_netns.file(),
            ifindex: device.index,
        }
    }

    /// Whether a device that the kernel names in a drop is between the last device of the node and QEMU.
    pub(crate) fn is_behind_last_device(&self, netns_inum: u32, ifindex: u32) -> bool {
        if self.tap_netns != self.netns && netns_inum == inum(&self.tap_netns) {
            return true;
        }
        netns_inum == inum(&self.netns)
            && self.last_device().is_ok_and(|last| last.index == ifindex)
    }
}
