//! What joins devices across a namespace's border: veth pairs, and filters that send all frames on.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute,
    TcFilterMatchAllOption, TcFilterU32Option, TcHandle, TcMessage, TcMirrorActionType, TcOption,
};
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::handle::Operation;
use super::link::{LinkInfo, LinkKind};
use super::{NetNs, Netlink, Result};

/// Where the filters of a device's ingress hang, of a clsact qdisc and of an ingress qdisc alike.
const INGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};

impl Netlink {
    /// The devices that classic filters at a device's ingress send frames out through (`mirred egress
    /// redirect`), each once. None where it has no ingress qdisc.
    ///
    /// # Errors
    /// The device is gone.
    pub async fn ingress_redirects(&self, link: u32) -> Result<Vec<u32>> {
        let operation = Operation::new("list the ingress filters of device", link);
        let mut query = TcMessage::default();
        query.header.index = i32::try_from(link).unwrap_or(0);
        query.header.parent = INGRESS;
        let filters = self
            .dump(&operation, RouteNetlinkMessage::GetTrafficFilter(query))
            .await?;
        let mut devices: Vec<u32> = filters.iter().flat_map(redirects).collect();
        devices.sort_unstable();
        devices.dedup();
        Ok(devices)
    }

    /// The other end of a veth, if it is in `netns`.
    ///
    /// # Errors
    /// The kernel does not answer, or `netns` can't be looked into.
    pub async fn veth_peer(&self, veth: &LinkInfo, netns: &Netlink) -> Result<Option<LinkInfo>> {
        let (LinkKind::Veth, Some(index)) = (&veth.kind, veth.peer) else {
            return Ok(None);
        };
        // Without a number the other end is in the veth's own namespace.
        let there = match veth.peer_netns {
            None => self.netns() == netns.netns(),
            Some(number) => self.netns_number(netns.netns()).await? == Some(number),
        };
        if !there {
            return Ok(None);
        }
        match netns.link_by_index(index).await {
            Ok(peer) => Ok((peer.peer == Some(veth.index)).then_some(peer)),
            Err(error) if error.already_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number by which devices of this namespace refer to another one; `None` when none does.
    async fn netns_number(&self, other: &NetNs) -> Result<Option<i32>> {
        let operation = Operation::new("look up the number of", other);
        let mut query = NsidMessage::default();
        let descriptor = u32::try_from(other.as_fd().as_raw_fd())
            .map_err(|_negative| operation.incomplete("a descriptor"))?;
        query.attributes.push(NsidAttribute::Fd(descriptor));
        let reply = self
            .get(&operation, RouteNetlinkMessage::GetNsId(query))
            .await?;
        let RouteNetlinkMessage::NewNsId(reply) = reply else {
            return Err(operation.incomplete("a number"));
        };
        let number = reply
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NsidAttribute::Id(number) => Some(*number),
                _ => None,
            });
        // -1: there is none.
        Ok(number.filter(|number| *number >= 0))
    }
}

fn redirects(filter: &RouteNetlinkMessage) -> Vec<u32> {
    let RouteNetlinkMessage::NewTrafficFilter(filter) = filter else {
        return Vec::new();
    };
    let options = filter
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.as_slice(),
            _ => &[],
        });
    options
        .flat_map(|option| match option {
            TcOption::U32(TcFilterU32Option::Action(actions))
            | TcOption::MatchAll(TcFilterMatchAllOption::Action(actions)) => actions.as_slice(),
            _ => &[],
        })
        .filter_map(redirect)
        .collect()
}

fn redirect(action: &TcAction) -> Option<u32> {
    let options = action
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => options.as_slice(),
            _ => &[],
        });
    options.into_iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}
