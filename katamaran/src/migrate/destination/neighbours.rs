//! Introduces the VM to this node's neighbour tables before packets come for it by the node's own
//! route.
//!
//! Once the network sends the VM's packets here, the node would first ask for the VM's Ethernet address.
//! The VM answers when it has worked off what was held for it, and of what arrives until then the
//! kernel keeps about a hundred packets and drops the rest (`NEIGH_QUEUEFULL`). The entry is an ordinary
//! one, which lives longer than a pause lasts: the kernel checks it later, and forgets it as any other.

use std::net::IpAddr;

use crate::migrate::error::chain;
use crate::migrate::message::VmDescription;
use crate::migrate::node::Node;
use crate::net::NetError;
use crate::net::link::MacAddr;

/// Introduces all addresses of the VM that this node has a direct route for. A route that is not
/// there yet is the network's affair, so nothing here fails the migration.
pub(super) async fn introduce(node: &Node, vm: &VmDescription) {
    for address in &vm.addresses {
        if let Err(error) = introduce_one(node, *address, MacAddr(vm.mac)).await {
            tracing::debug!(%address, error = chain(&error), "not introduced as a neighbour");
        }
    }
}

async fn introduce_one(node: &Node, address: IpAddr, mac: MacAddr) -> Result<(), NetError> {
    let route = node.netlink.route_get(address).await?;
    let leads_there = node
        .last_device()
        .is_ok_and(|last| route.device == last.index || last.controller == Some(route.device));
    if !leads_there || route.gateway.is_some() || route.local {
        return Ok(());
    }
    node.netlink.introduce(route.device, address, mac).await
}
