//! How a VM's tap hangs on its node's network.
//!
//! ```text
//!   in the node's namespace:  node: tap, alone or as a port of a bridge
//!   in a pod's (Kata):        node: veth ═══ pod: eth0 ◀─ filters ─▶ tap
//! ```
//!
//! Kata's filters (its `tcfilter` model) send every frame that comes in at `eth0` out through the tap, and back. They
//! tell which device of the pod leads to the tap; its veth tells the device of the node.

use crate::net::Netlink;
use crate::net::link::{LinkInfo, LinkKind};

use super::DiscoverError;

/// The way between the node's network and the VM's tap.
#[derive(Debug, Clone)]
pub enum Wiring {
    /// The tap is in the node's namespace.
    Node,
    /// The tap is in a pod's namespace.
    Pod(Box<Pod>),
}

/// The veth between a node and a pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The pod's end (`eth0`), joined with the tap.
    pub inside: LinkInfo,
    /// The node's end.
    pub outside: LinkInfo,
}

/// Follows a tap to the node. `here` is the node's namespace, `there` the tap's.
///
/// # Errors
/// It is in another namespace, and how its packets get there can't be told.
pub async fn wiring(
    here: &Netlink,
    there: &Netlink,
    tap: &LinkInfo,
) -> Result<Wiring, DiscoverError> {
    if here.netns() == there.netns() {
        return Ok(Wiring::Node);
    }
    let failed = |source| DiscoverError::Wiring {
        tap: tap.name.clone(),
        source,
    };
    let mut joined = Vec::new();
    for link in there.links().await.map_err(failed)? {
        if link.index == tap.index {
            continue;
        }
        let leads_to = there.ingress_redirects(link.index).await.map_err(failed)?;
        if leads_to.contains(&tap.index) {
            joined.push(link);
        }
    }
    let inside = match joined.as_slice() {
        [] => {
            return Err(DiscoverError::NotJoined {
                tap: tap.name.clone(),
                netns: there.netns().to_string(),
            });
        }
        [only] => only.clone(),
        [one, two, ..] => {
            return Err(DiscoverError::JoinedTwice {
                tap: tap.name.clone(),
                devices: [one.name.clone(), two.name.clone()],
            });
        }
    };
    match there.veth_peer(&inside, here).await.map_err(failed)? {
        Some(outside) => Ok(Wiring::Pod(Box::new(Pod { inside, outside }))),
        None => Err(DiscoverError::NoNodeEnd {
            tap: tap.name.clone(),
            kind: match inside.kind {
                LinkKind::Veth => "veth whose other end is in a third namespace".to_owned(),
                other => format!("device of kind {other}"),
            },
            device: inside.name,
        }),
    }
}
