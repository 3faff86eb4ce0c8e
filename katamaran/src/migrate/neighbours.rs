//! Introduces the VM to this node's neighbour tables while it can't answer for itself.
//!
//! On the destination, once the network sends the VM's packets there, the node would first ask for the VM's Ethernet address. The VM
//! answers when it has worked off what was held for it, and of what arrives until then the kernel keeps about a hundred packets and drops
//! the rest (`NEIGH_QUEUEFULL`). On the source, nobody answers for a VM whose migration is given up and whose QEMU stands still: the
//! same would come 8 s later. The entry is an ordinary one, which lives longer than a pause lasts: the kernel checks it later, and
//! forgets it as any other.

use std::net::IpAddr;

use crate::migrate::error::chain;
use crate::migrate::nic::Nic;
use crate::net::NetError;
use crate::net::handle::Netlink;
use crate::net::link::{LinkInfo, MacAddr};

/// The VM, as this node's neighbour.
#[derive(Clone)]
pub(crate) struct Neighbours {
    netlink: Netlink,
    /// The node's device that leads to the VM, where that is known.
    device: Option<LinkInfo>,
    addresses: Vec<IpAddr>,
    mac: MacAddr,
}

impl Neighbours {
    pub(crate) fn of(nic: &Nic, addresses: &[IpAddr], mac: [u8; 6]) -> Self {
        Self {
            netlink: nic.netlink.clone(),
            device: nic.last_device().ok().cloned(),
            addresses: addresses.to_vec(),
            mac: MacAddr(mac),
        }
    }

    /// Introduces all addresses of the VM that this node has a direct route for. A route that is not
    /// there is the network's affair, so nothing here fails the migration.
    pub(crate) async fn introduce(&self) {
        for address in &self.addresses {
            if let Err(error) = self.introduce_one(*address).await {
                tracing::debug!(%address, error = chain(&error), "not introduced as a neighbour");
            }
        }
    }

    async fn introduce_one(&self, address: IpAddr) -> Result<(), NetError> {
        let route = self.netlink.route_get(address).await?;
        let leads_there = self.device.as_ref().is_some_and(|device| {
            route.device == device.index || device.controller == Some(route.device)
        });
        if !leads_there || route.gateway.is_some() || route.local {
            return Ok(());
        }
        self.netlink
            .introduce(route.device, address, self.mac)
            .await
    }
}
