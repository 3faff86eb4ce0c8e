//! A veth pair between a pod and its node that carries nothing but what a migration sends through it.
//!
//! On kernels without TCX (before 6.6) a device gets a clsact qdisc for a TC program, and its queues are reset for that
//! (`qdisc_graft()`, net/sched/sch_api.c): what waits in them, or comes meanwhile, is dropped. A device that nobody uses yet has
//! nothing to lose.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo as LinkInfoNla, LinkMessage,
};
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::handle::Operation;
use super::link::OwnedLink;
use super::names::detour_link;
use super::{Netlink, Result};
use crate::session_id::SessionId;

/// The pair, up. [`Detour::remove`] is its normal end.
#[derive(Debug)]
#[must_use = "the devices stay behind unless they are removed"]
pub struct Detour {
    outside: OwnedLink,
    inside: u32,
}

impl Detour {
    /// Makes the pair, with one end in each namespace, both of one name; `mtu` is the longest IP packet, bytes. A
    /// stale pair of the same name is deleted first.
    ///
    /// # Errors
    /// The kernel refuses; nothing is left then.
    pub async fn create(
        node: &Netlink,
        pod: &Netlink,
        session: SessionId,
        mtu: u32,
    ) -> Result<Self> {
        let name = detour_link(session);
        node.delete_stale(&name).await?;
        let operation = Operation::new("create a veth pair", &name);
        let common = [LinkAttribute::IfName(name.clone()), LinkAttribute::Mtu(mtu)];
        let mut peer = LinkMessage::default();
        peer.attributes = common.to_vec();
        peer.attributes
            .push(LinkAttribute::NetNsFd(pod.netns().as_fd().as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes = common.to_vec();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfoNla::Kind(InfoKind::Veth),
            LinkInfoNla::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        node.execute(
            &operation,
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await?;
        let index = node.link_by_name(&name).await?.index;
        let outside = OwnedLink::new(node.clone(), name.clone(), index);
        match start(node, &outside, pod, &name).await {
            Ok(inside) => Ok(Self { outside, inside }),
            Err(error) => {
                if let Err(second) = outside.remove().await {
                    tracing::warn!(%second, "a half-made veth pair stays behind");
                }
                Err(error)
            }
        }
    }

    /// Index of the end in the pod.
    #[must_use]
    pub fn inside(&self) -> u32 {
        self.inside
    }

    /// Index of the end on the node.
    #[must_use]
    pub fn outside(&self) -> u32 {
        self.outside.index()
    }

    /// Deletes both ends. That they are gone already is success.
    ///
    /// # Errors
    /// The kernel refuses; the devices are left to the next start.
    pub async fn remove(self) -> Result<()> {
        self.outside.remove().await
    }
}

async fn start(node: &Netlink, outside: &OwnedLink, pod: &Netlink, name: &str) -> Result<u32> {
    let inside = pod.link_by_name(name).await?.index;
    node.set_up_silently(outside.index(), name).await?;
    pod.set_up_silently(inside, name).await?;
    Ok(inside)
}
