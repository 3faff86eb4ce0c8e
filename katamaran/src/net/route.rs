//! Routes, local addresses, and the underlay: how this node reaches another.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::handle::Operation;
use super::{NetError, Netlink, Result};

/// The route that the kernel takes to one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination that was asked for.
    pub destination: IpAddr,
    /// Index of the device that packets leave through.
    pub device: u32,
    /// The next hop, unless the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// MTU in bytes from the route or learned for the destination, when there is one.
    pub mtu: Option<u32>,
    /// The destination is this node.
    pub local: bool,
}

/// An address of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddress {
    /// The device that has it.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix: u8,
}

/// How this node reaches a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The peer.
    pub peer: IpAddr,
    /// Our address towards it.
    pub local: IpAddr,
    /// Index of the device towards it.
    pub device: u32,
    /// That device's name.
    pub device_name: String,
    /// The next hop, unless the peer is on the link.
    pub gateway: Option<IpAddr>,
    /// Longest IP packet in bytes: the smaller of the device's and the route's MTU.
    pub mtu: u32,
}

impl Netlink {
    /// The route to an address, as the kernel resolves it for packets of this node.
    ///
    /// # Errors
    /// There is no route, or it rejects packets.
    pub async fn route_get(&self, destination: IpAddr) -> Result<Route> {
        let operation = Operation::new("look up the route to", destination);
        let query = RouteNetlinkMessage::GetRoute(query(destination));
        let RouteNetlinkMessage::NewRoute(reply) = self.get(&operation, query).await? else {
            return Err(operation.incomplete("a route"));
        };
        Route::read(destination, reply)
    }

    /// The longest IP packet, in bytes, that this node can send to `destination` unfragmented, as
    /// far as it knows: the smaller of the device's MTU and the route's.
    ///
    /// # Errors
    /// There is no route.
    pub async fn path_mtu(&self, destination: IpAddr) -> Result<u32> {
        let route = self.route_get(destination).await?;
        let device = self.link_by_index(route.device).await?;
        Ok(route.mtu.map_or(device.mtu, |mtu| mtu.min(device.mtu)))
    }

    /// How this node reaches `peer`.
    ///
    /// # Errors
    /// There is no route, or it has no source address.
    pub async fn underlay(&self, peer: IpAddr) -> Result<Underlay> {
        let route = self.route_get(peer).await?;
        let device = self.link_by_index(route.device).await?;
        let local = route.source.ok_or_else(|| NetError::Missing {
            what: "source address for packets to",
            object: peer.to_string(),
        })?;
        Ok(Underlay {
            peer,
            local,
            device: route.device,
            device_name: device.name,
            gateway: route.gateway,
            mtu: route.mtu.map_or(device.mtu, |mtu| mtu.min(device.mtu)),
        })
    }

    /// All addresses of this node in the namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn local_addresses(&self) -> Result<Vec<LocalAddress>> {
        let operation = Operation::new("list the addresses of", self.netns());
        let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let replies = self.dump(&operation, query).await?;
        Ok(replies.into_iter().filter_map(local_address).collect())
    }
}

impl Route {
    /// From the kernel's answer to [`query`].
    pub(super) fn read(destination: IpAddr, reply: RouteMessage) -> Result<Self> {
        let RouteHeader { kind, .. } = reply.header;
        if !matches!(kind, RouteType::Unicast | RouteType::Local) {
            return Err(NetError::Missing {
                what: "usable route to",
                object: format!("{destination} (it is {kind:?})"),
            });
        }
        let mut route = Route {
            destination,
            device: 0,
            gateway: None,
            source: None,
            mtu: None,
            local: kind == RouteType::Local,
        };
        for attribute in reply.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.device = index,
                RouteAttribute::Gateway(address) => route.gateway = ip(&address),
                RouteAttribute::Via(RouteVia::Inet6(address)) => {
                    route.gateway = Some(address.into());
                }
                RouteAttribute::PrefSource(address) => route.source = ip(&address),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        if route.device == 0 {
            let operation = Operation::new("look up the route to", destination);
            return Err(operation.incomplete("a device"));
        }
        Ok(route)
    }
}

/// What asks for the route to one address.
pub(super) fn query(destination: IpAddr) -> RouteMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = family(destination);
    query.header.destination_prefix_length = bits(destination);
    query
        .attributes
        .push(RouteAttribute::Destination(destination.into()));
    query
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// On a point-to-point device IFA_ADDRESS is the peer's; IFA_LOCAL, where present, is ours.
fn local_address(message: RouteNetlinkMessage) -> Option<LocalAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            _ => {}
        }
    }
    Some(LocalAddress {
        device: message.header.index,
        address: local.or(address)?,
        prefix: message.header.prefix_len,
    })
}
