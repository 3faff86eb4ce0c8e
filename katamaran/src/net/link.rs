//! Network devices: look them up, change them, own them.

use std::fmt;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags,
    LinkInfo as LinkInfoNla, LinkMessage, State,
};

use super::counters::LinkCounters;
use super::handle::Operation;
use super::{Netlink, Result};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MacAddr({self})")
    }
}

/// The text is not six hexadecimal bytes with colons between them.
#[derive(Debug, thiserror::Error)]
#[error("not an Ethernet address (like 52:54:00:12:34:56): {0:?}")]
pub struct InvalidMacAddr(String);

impl std::str::FromStr for MacAddr {
    type Err = InvalidMacAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| InvalidMacAddr(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(InvalidMacAddr(text.to_owned())),
        }
    }
}

/// What kind of device it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A tun or tap device.
    Tun,
    /// A bridge.
    Bridge,
    /// One end of a pair.
    Veth,
    /// A VXLAN tunnel.
    Vxlan,
    /// Another virtual device, by the kernel's name for it.
    Other(String),
    /// A device that names no kind: real hardware, or the loopback device.
    Hardware,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tun => "tun/tap",
            Self::Bridge => "bridge",
            Self::Veth => "veth",
            Self::Vxlan => "vxlan",
            Self::Other(kind) => kind,
            Self::Hardware => "hardware or loopback",
        })
    }
}

/// A device as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its name.
    pub name: String,
    /// Its index, unique in its namespace.
    pub index: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// Longest packet it sends, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// What it is.
    pub kind: LinkKind,
    /// Someone set it up (IFF_UP).
    pub up: bool,
    /// Something is at its other end: for a tap, a process has it open.
    pub carrier: bool,
    /// The kernel's operational state.
    pub operstate: State,
    /// Length of its transmit queue in packets: for a tap, the size of its ring.
    pub txqlen: u32,
    /// The device that this one is a port of, for example a bridge.
    pub controller: Option<u32>,
    /// The device that this one is paired with or built on: for a veth, its other end.
    pub peer: Option<u32>,
    /// The number of the namespace where that one is, unless it is the same.
    pub peer_netns: Option<i32>,
    /// Name of its root queueing discipline.
    pub qdisc: Option<String>,
    /// Its counters.
    pub counters: LinkCounters,
}

#[cfg(test)]
impl LinkInfo {
    /// A tap of this name and MTU.
    pub(crate) fn fake(name: &str, mtu: u32) -> Self {
        Self {
            name: name.to_owned(),
            index: 1,
            mac: None,
            mtu,
            kind: LinkKind::Tun,
            up: true,
            carrier: true,
            operstate: State::Up,
            txqlen: 1000,
            controller: None,
            peer: None,
            peer_netns: None,
            qdisc: None,
            counters: LinkCounters::default(),
        }
    }
}

impl Netlink {
    /// The device with this name.
    ///
    /// # Errors
    /// There is none (`already_gone()`).
    pub async fn link_by_name(&self, name: &str) -> Result<LinkInfo> {
        let operation = Operation::new("look up device", name);
        let mut query = LinkMessage::default();
        query
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        self.link(&operation, query).await
    }

    /// The device with this index.
    ///
    /// # Errors
    /// There is none (`already_gone()`).
    pub async fn link_by_index(&self, index: u32) -> Result<LinkInfo> {
        let operation = Operation::new("look up device", index);
        let mut query = LinkMessage::default();
        query.header.index = index;
        self.link(&operation, query).await
    }

    /// All devices of the namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn links(&self) -> Result<Vec<LinkInfo>> {
        let operation = Operation::new("list the devices of", self.netns());
        let query = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump(&operation, query)
            .await?
            .into_iter()
            .map(|m| parse(&operation, m))
            .collect()
    }

    async fn link(&self, operation: &Operation, query: LinkMessage) -> Result<LinkInfo> {
        let reply = self
            .get(operation, RouteNetlinkMessage::GetLink(query))
            .await?;
        parse(operation, reply)
    }

    /// Sets the length of a device's transmit queue, in packets. A tap's ring is resized at once;
    /// making it shorter than what it holds destroys packets (see [`super::tap::RaisedQueue`]).
    ///
    /// # Errors
    /// The device is gone, or memory is short.
    pub async fn set_txqlen(&self, link: u32, packets: u32) -> Result<()> {
        let operation = Operation::new("set the transmit queue length of device", link);
        self.set_link(&operation, link, vec![LinkAttribute::TxQueueLen(packets)])
            .await
    }

    /// Sets a device's MTU in bytes.
    ///
    /// # Errors
    /// The device is gone or can't take that MTU.
    pub async fn set_mtu(&self, link: u32, mtu: u32) -> Result<()> {
        let operation = Operation::new("set the MTU of device", link);
        self.set_link(&operation, link, vec![LinkAttribute::Mtu(mtu)])
            .await
    }

    /// Sets a device up.
    ///
    /// # Errors
    /// The device is gone or refuses.
    pub async fn set_up(&self, link: u32) -> Result<()> {
        let operation = Operation::new("set up device", link);
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.execute(&operation, RouteNetlinkMessage::SetLink(message), 0)
            .await
    }

    /// Sets a device up that is to say nothing by itself. Addresses are switched off before it goes up: the
    /// kernel takes no such setting at creation, and going up would already send router solicitations.
    pub(super) async fn set_up_silently(&self, link: u32, name: &str) -> Result<()> {
        let operation = Operation::new("keep IPv6 off device", name);
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let quiet = LinkAttribute::AfSpecUnspec(vec![none]);
        match self.set_link(&operation, link, vec![quiet]).await {
            // A kernel without IPv6 is as silent as it gets.
            Err(error) if error.unsupported() => {}
            other => other?,
        }
        self.set_up(link).await
    }

    /// Deletes what an earlier session has left under a name of ours.
    pub(super) async fn delete_stale(&self, name: &str) -> Result<()> {
        match self.link_by_name(name).await {
            Ok(stale) => {
                tracing::info!(device = name, "a stale device of the same name is deleted");
                self.delete_link(stale.index).await
            }
            Err(error) if error.already_gone() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn set_link(
        &self,
        operation: &Operation,
        link: u32,
        attributes: Vec<LinkAttribute>,
    ) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes = attributes;
        self.execute(operation, RouteNetlinkMessage::SetLink(message), 0)
            .await
    }

    /// Deletes a device. That it is gone already is success.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn delete_link(&self, link: u32) -> Result<()> {
        let operation = Operation::new("delete device", link);
        let mut message = LinkMessage::default();
        message.header.index = link;
        match self
            .execute(&operation, RouteNetlinkMessage::DelLink(message), 0)
            .await
        {
            Err(error) if error.already_gone() => Ok(()),
            other => other,
        }
    }
}

/// A device that we created. [`OwnedLink::remove`] is its normal end; if it is dropped the device
/// stays, a warning names it, and the sweep for leftovers finds it.
#[derive(Debug)]
#[must_use = "the device stays behind unless it is removed"]
pub struct OwnedLink {
    netlink: Netlink,
    name: String,
    index: u32,
    removed: bool,
}

impl OwnedLink {
    pub(super) fn new(netlink: Netlink, name: String, index: u32) -> Self {
        Self {
            netlink,
            name,
            index,
            removed: false,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The device as it is now.
    ///
    /// # Errors
    /// It is gone.
    pub async fn info(&self) -> Result<LinkInfo> {
        self.netlink.link_by_index(self.index).await
    }

    /// Deletes the device. That it is gone already is success.
    ///
    /// # Errors
    /// The kernel refuses; the device is left to the sweep.
    pub async fn remove(mut self) -> Result<()> {
        // Also on an error: the caller has it and reports it.
        self.removed = true;
        self.netlink.delete_link(self.index).await
    }
}

impl Drop for OwnedLink {
    fn drop(&mut self) {
        if !self.removed {
            tracing::warn!(device = %self.name, "a device was not removed and stays behind");
        }
    }
}

fn parse(operation: &Operation, message: RouteNetlinkMessage) -> Result<LinkInfo> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return Err(operation.incomplete("a device"));
    };
    let mut link = LinkInfo {
        name: String::new(),
        index: message.header.index,
        mac: None,
        mtu: 0,
        kind: LinkKind::Hardware,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        operstate: State::Unknown,
        txqlen: 0,
        controller: None,
        peer: None,
        peer_netns: None,
        qdisc: None,
        counters: LinkCounters::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddr),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = carrier != 0,
            LinkAttribute::OperState(state) => link.operstate = state,
            LinkAttribute::TxQueueLen(length) => link.txqlen = length,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(number) => link.peer_netns = Some(number),
            LinkAttribute::Qdisc(name) => link.qdisc = Some(name),
            LinkAttribute::LinkInfo(infos) => {
                if let Some(kind) = infos.iter().find_map(kind) {
                    link.kind = kind;
                }
            }
            LinkAttribute::Stats64(s) => {
                link.counters = LinkCounters {
                    rx_packets: s.rx_packets,
                    tx_packets: s.tx_packets,
                    rx_bytes: s.rx_bytes,
                    tx_bytes: s.tx_bytes,
                    rx_errors: s.rx_errors,
                    tx_errors: s.tx_errors,
                    rx_dropped: s.rx_dropped,
                    tx_dropped: s.tx_dropped,
                };
            }
            _ => {}
        }
    }
    if link.name.is_empty() {
        return Err(operation.incomplete("the device's name"));
    }
    Ok(link)
}

fn kind(info: &LinkInfoNla) -> Option<LinkKind> {
    let LinkInfoNla::Kind(kind) = info else {
        return None;
    };
    Some(match kind {
        InfoKind::Tun => LinkKind::Tun,
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Veth => LinkKind::Veth,
        InfoKind::Vxlan => LinkKind::Vxlan,
        other => LinkKind::Other(other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_survives_text() {
        let text = "52:54:00:12:34:fe";
        assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), text);
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:fe:00",
            "52:54:00:12:34:+f",
            "5254001234fe",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
