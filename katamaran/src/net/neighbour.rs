//! Neighbours, bridge forwarding entries, and with them the device that leads to the VM.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::handle::Operation;
use super::link::{LinkInfo, LinkKind, MacAddr};
use super::route::{Route, family};
use super::{NetError, Netlink, Result};

/// What the node knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address, once resolved.
    pub mac: Option<MacAddr>,
    /// The kernel's state of the entry.
    pub state: NeighbourState,
}

impl Neighbour {
    /// Packets can be sent to it without asking first.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        self.mac.is_some()
            && !matches!(
                self.state,
                NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
            )
    }
}

/// How packets of this node reach the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TowardsVm {
    /// The route that was taken.
    pub route: Route,
    /// The device that leads to the VM: the route's own, or the bridge port that the VM is behind.
    pub device: LinkInfo,
    /// The bridge between the two, if any.
    pub bridge: Option<LinkInfo>,
}

impl Netlink {
    /// The neighbour entry for an address on a device, if there is one.
    ///
    /// # Errors
    /// The kernel refuses or does not answer. No entry is not an error.
    pub async fn neighbour(&self, device: u32, address: IpAddr) -> Result<Option<Neighbour>> {
        let operation = Operation::new("look up the neighbour", address);
        let query = entry(device, address);
        match self
            .get(&operation, RouteNetlinkMessage::GetNeighbour(query))
            .await
        {
            Ok(RouteNetlinkMessage::NewNeighbour(entry)) => Ok(Some(Neighbour {
                mac: mac(&entry),
                state: entry.header.state,
            })),
            Ok(_) => Err(operation.incomplete("a neighbour")),
            Err(error) if error.already_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says where a neighbour is, as an entry that was just confirmed (REACHABLE): packets leave at once, and the kernel
    /// begins to check it after 15 to 45 s (`base_reachable_time`, 30 s, by a random factor). A stale one would fail 8 s after the first packet
    /// (`delay_first_probe_time` and three probes) where the neighbour can't answer yet, and packets would be dropped. A neighbour that the
    /// kernel has to ask for first gets about a hundred packets queued, and all further ones dropped, until it answers.
    ///
    /// # Errors
    /// The device is gone, has no neighbours, or is of another address family.
    pub async fn introduce(&self, device: u32, address: IpAddr, at: MacAddr) -> Result<()> {
        let operation = Operation::new("introduce the neighbour", address);
        let mut message = entry(device, address);
        message.header.state = NeighbourState::Reachable;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(at.0.to_vec()));
        self.execute(
            &operation,
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// The bridge port behind which `mac` was seen, or `None` if the bridge has not learned it, or
    /// the address is the bridge's own.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn bridge_port(&self, bridge: u32, mac_address: MacAddr) -> Result<Option<u32>> {
        let operation = Operation::new("list the forwarding entries of bridge", bridge);
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Bridge;
        query
            .attributes
            .push(NeighbourAttribute::Controller(bridge));
        // The kernel may ignore the filter: entries of other bridges are sorted out here. On a
        // VLAN-aware bridge there is one entry for each VLAN; the VM's port is the same in all.
        let entries = self
            .dump(&operation, RouteNetlinkMessage::GetNeighbour(query))
            .await?;
        Ok(entries.iter().find_map(|entry| {
            let RouteNetlinkMessage::NewNeighbour(entry) = entry else {
                return None;
            };
            let ours = entry
                .attributes
                .contains(&NeighbourAttribute::Controller(bridge));
            // Permanent entries are the addresses of the bridge and of its ports themselves.
            let learned = entry.header.state != NeighbourState::Permanent;
            (ours && learned && mac(entry) == Some(mac_address)).then_some(entry.header.ifindex)
        }))
    }

    /// The device that leads to the VM: the one its route resolves to, and if that is a bridge, the
    /// port behind which the VM's Ethernet address was seen.
    ///
    /// # Errors
    /// There is no route, the address is this node's own, or the bridge has not seen the VM.
    pub async fn towards_vm(&self, vm: IpAddr, vm_mac: Option<MacAddr>) -> Result<TowardsVm> {
        let route = self.route_get(vm).await?;
        if route.local {
            return Err(NetError::WrongKind {
                device: vm.to_string(),
                found: "an address of this node".to_owned(),
                wanted: "the VM's",
            });
        }
        let device = self.link_by_index(route.device).await?;
        if device.kind != LinkKind::Bridge {
            return Ok(TowardsVm {
                route,
                device,
                bridge: None,
            });
        }
        let seen = match vm_mac {
            Some(vm_mac) => Some(vm_mac),
            None => self
                .neighbour(device.index, vm)
                .await?
                .and_then(|entry| entry.mac),
        };
        let unseen = || NetError::Missing {
            what: "port towards the VM on bridge",
            object: format!("{} (name the device with --redirect-dev)", device.name),
        };
        let seen = seen.ok_or_else(unseen)?;
        let port = self
            .bridge_port(device.index, seen)
            .await?
            .ok_or_else(unseen)?;
        let port = self.link_by_index(port).await?;
        Ok(TowardsVm {
            route,
            device: port,
            bridge: Some(device),
        })
    }
}

fn entry(device: u32, address: IpAddr) -> NeighbourMessage {
    let destination = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = device;
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
}

fn mac(entry: &NeighbourMessage) -> Option<MacAddr> {
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                bytes.as_slice().try_into().ok().map(MacAddr)
            }
            _ => None,
        })
}
