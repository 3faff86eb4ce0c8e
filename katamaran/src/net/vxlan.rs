//! A point-to-point VXLAN device for one session.
//!
//! For underlays that do not carry IP protocol 4, and for packets that no longer fit the path once they
//! are wrapped: the outer packet's "don't fragment" is left unset, so that over IPv4 the kernel cuts
//! it in pieces where it must and the receiving node puts it together again. IPv6 has no such way
//! (see [`Vxlan::create`]).
//!
//! The device is silent: it learns nothing, has no addresses and generates none.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo as LinkInfoNla, LinkMessage, VxlanDf,
};

use super::handle::Operation;
use super::link::OwnedLink;
use super::names::{session_link, session_vni};
use super::{NetError, Netlink, Result};
use crate::role::Role;
use crate::session_id::SessionId;

const ETHERNET_HEADER: u32 = 14;
const UDP_AND_VXLAN_HEADERS: u32 = 16;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

/// Bytes that are put around an IP packet on its way to `remote`.
#[must_use]
pub fn overhead(remote: IpAddr) -> u32 {
    let outer = if remote.is_ipv4() {
        IPV4_HEADER
    } else {
        IPV6_HEADER
    };
    ETHERNET_HEADER + UDP_AND_VXLAN_HEADERS + outer
}

/// A tunnel between the two nodes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanSpec {
    /// The session, which gives the device's name and the network identifier.
    pub session: SessionId,
    /// Our end.
    pub role: Role,
    /// Our address on the underlay.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
    /// UDP port of both ends. Not the one of the cluster's own tunnels (4789, 8472).
    pub port: u16,
    /// The VM's MTU in bytes: the longest inner IP packet.
    pub vm_mtu: u32,
    /// Length of the device's transmit queue in packets.
    pub txqlen: u32,
}

/// A session's VXLAN device, up. [`Vxlan::remove`] is its normal end.
#[derive(Debug)]
#[must_use = "the device stays behind unless it is removed"]
pub struct Vxlan {
    link: OwnedLink,
    vni: u32,
}

impl Vxlan {
    /// Creates the device and sets it up. A stale device of the same name is deleted first.
    ///
    /// # Errors
    /// The kernel has no VXLAN (`unsupported()`), another device has the same identifier and port
    /// (`already_exists()`), or the addresses are of different families. Over IPv6, an underlay whose MTU
    /// does not fit a whole wrapped packet is [`NetError::UnderlayMtu`]: the kernel fragments
    /// IPv6 only where the packet comes from a socket, and drops it here.
    pub async fn create(netlink: &Netlink, spec: &VxlanSpec) -> Result<Self> {
        let name = session_link(spec.role, spec.session);
        let vni = session_vni(spec.session);
        check_underlay(netlink, spec).await?;
        netlink.delete_stale(&name).await?;
        let operation = Operation::new("create VXLAN device", &name);
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.clone()),
            LinkAttribute::Mtu(spec.vm_mtu),
            LinkAttribute::TxQueueLen(spec.txqlen),
            LinkAttribute::LinkInfo(vec![
                LinkInfoNla::Kind(InfoKind::Vxlan),
                LinkInfoNla::Data(InfoData::Vxlan(parameters(spec, vni))),
            ]),
        ];
        netlink
            .execute(
                &operation,
                RouteNetlinkMessage::NewLink(message),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await
            .map_err(not_this_kind)?;
        let index = netlink.link_by_name(&name).await?.index;
        let link = OwnedLink::new(netlink.clone(), name, index);
        match netlink.set_up_silently(link.index(), link.name()).await {
            Ok(()) => Ok(Self { link, vni }),
            Err(error) => {
                if let Err(second) = link.remove().await {
                    tracing::warn!(%second, "a half-made VXLAN device stays behind");
                }
                Err(error)
            }
        }
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.link.name()
    }

    /// The device's index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.link.index()
    }

    /// The network identifier.
    #[must_use]
    pub fn vni(&self) -> u32 {
        self.vni
    }

    /// The device itself.
    pub fn link(&self) -> &OwnedLink {
        &self.link
    }

    /// Deletes the device. That it is gone already is success.
    ///
    /// # Errors
    /// The kernel refuses; the device is left to the sweep.
    pub async fn remove(self) -> Result<()> {
        self.link.remove().await
    }
}

async fn check_underlay(netlink: &Netlink, spec: &VxlanSpec) -> Result<()> {
    if spec.local.is_ipv4() != spec.remote.is_ipv4() {
        return Err(NetError::WrongKind {
            device: spec.local.to_string(),
            found: "of another address family".to_owned(),
            wanted: "of the peer's",
        });
    }
    if spec.remote.is_ipv4() {
        return Ok(());
    }
    let needed = spec.vm_mtu + overhead(spec.remote);
    let available = netlink.path_mtu(spec.remote).await?;
    if needed > available {
        return Err(NetError::UnderlayMtu {
            remote: spec.remote,
            needed,
            available,
        });
    }
    Ok(())
}

/// No lower device is named: the kernel would then cap the MTU to what fits unfragmented.
fn parameters(spec: &VxlanSpec, vni: u32) -> Vec<InfoVxlan> {
    let mut parameters = vec![
        InfoVxlan::Id(vni),
        InfoVxlan::Port(spec.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Df(VxlanDf::Unset),
        InfoVxlan::Ttl(64),
        InfoVxlan::UDPCsum(true),
    ];
    parameters.extend(match (spec.local, spec.remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            [InfoVxlan::Local(local), InfoVxlan::Group(remote)]
        }
        (local, remote) => [InfoVxlan::Local6(v6(local)), InfoVxlan::Group6(v6(remote))],
    });
    parameters
}

fn v6(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// An unknown kind of device is EOPNOTSUPP.
fn not_this_kind(error: NetError) -> NetError {
    match error {
        NetError::Kernel { errno, detail, .. } if errno == nix::errno::Errno::EOPNOTSUPP => {
            NetError::Unsupported {
                feature: "VXLAN devices",
                detail,
                errno,
            }
        }
        other => other,
    }
}
