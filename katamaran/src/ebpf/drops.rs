//! What the kernel dropped of V's packets, with its own reason.

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use katamaran_common::layout::{DropKey, FROM_VM};
use katamaran_common::names;
use katamaran_common::trace::Tunnel;

use super::error::EbpfError;
use super::object;
use super::symbols::Symbols;
use super::witness::DropReasons;

/// Packets of V that the kernel dropped in one place for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketDrop {
    /// The kernel's name of the reason, without its prefix: `FULL_RING`, `NETFILTER_DROP`, ...
    pub reason: String,
    /// The kernel function, `name+0x1f`; `None` where kernel addresses are hidden.
    pub symbol: Option<String>,
    /// Its address.
    pub location: u64,
    /// The packet's device, in its namespace; 0: it had none.
    pub ifindex: u32,
    /// Inode number of that network namespace; 0: not known.
    pub netns_inum: u32,
    /// The tunnel whose outer header it still had, or already had.
    pub tunnel: Option<TunnelKind>,
    /// Whether V sent it; else it was sent to V.
    pub from_vm: bool,
    /// How many packets on the wire.
    pub packets: u64,
}

/// What carries a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelKind {
    /// IP in IP, of either family.
    Ip,
    /// GRE.
    Gre,
    /// VXLAN.
    Vxlan,
}

impl PacketDrop {
    /// Without its symbol.
    pub(super) fn new(key: &DropKey, packets: u64, reasons: &DropReasons) -> Self {
        Self {
            reason: reasons.name(key.reason),
            symbol: None,
            location: key.location,
            ifindex: key.ifindex,
            netns_inum: key.netns_inum,
            tunnel: tunnel_kind(key.way & !FROM_VM),
            from_vm: key.way & FROM_VM != 0,
            packets,
        }
    }

    /// Whether no packet of V's own was lost: only a copy (a packet socket, say tcpdump's, could not
    /// keep up), or a piece of a packet whose own end is told elsewhere. A reassembled packet
    /// carries its fragments along, and `skb_release_data()` (net/core/skbuff.c) frees them one by
    /// one when the packet itself has been read.
    #[must_use]
    pub fn is_no_loss(&self) -> bool {
        self.reason == "PACKET_SOCK_ERROR"
            || self
                .symbol
                .as_deref()
                .is_some_and(|s| s.starts_with("skb_release_data+"))
    }
}

fn tunnel_kind(way: u32) -> Option<TunnelKind> {
    [
        (Tunnel::Ip, TunnelKind::Ip),
        (Tunnel::Gre, TunnelKind::Gre),
        (Tunnel::Vxlan, TunnelKind::Vxlan),
    ]
    .into_iter()
    .find_map(|(code, kind)| (code as u32 == way).then_some(kind))
}

pub(super) struct DropMap {
    drops: HashMap<MapData, DropKey, u64>,
}

impl DropMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            drops: object::map(ebpf, names::MAP_DROPS)?,
        })
    }

    /// All drops, the most frequent first. The table of symbols is long: it is read only when there are
    /// drops.
    pub(super) fn read(&self, reasons: &DropReasons) -> Result<Vec<PacketDrop>, EbpfError> {
        let mut found = self.unnamed(reasons)?;
        if !found.is_empty() {
            let symbols = Symbols::of_kernel();
            for drop in &mut found {
                drop.symbol = symbols.name(drop.location);
            }
        }
        Ok(found)
    }

    /// The same without symbols.
    pub(super) fn unnamed(&self, reasons: &DropReasons) -> Result<Vec<PacketDrop>, EbpfError> {
        let mut found = Vec::new();
        for entry in self.drops.iter() {
            let (key, packets) = entry.map_err(EbpfError::map("read", names::MAP_DROPS))?;
            found.push(PacketDrop::new(&key, packets, reasons));
        }
        found.sort_by_key(|drop| (u64::MAX - drop.packets, drop.location, drop.ifindex));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_copies_of_a_packet_are_no_loss() {
        let drop = |reason: &str, symbol: &str| PacketDrop {
            reason: reason.to_owned(),
            symbol: Some(symbol.to_owned()),
            location: 0,
            ifindex: 1,
            netns_inum: 1,
            tunnel: None,
            from_vm: false,
            packets: 1,
        };
        assert!(drop("NOT_SPECIFIED", "skb_release_data+0x163").is_no_loss());
        assert!(drop("PACKET_SOCK_ERROR", "packet_rcv+0x1").is_no_loss());
        assert!(!drop("NETFILTER_DROP", "nf_hook_slow+0x1").is_no_loss());
    }

    #[test]
    fn way_and_tunnel_are_told_apart() {
        let reasons = DropReasons::default();
        let key = |way| DropKey {
            way,
            ..DropKey::default()
        };
        let drop = PacketDrop::new(&key(Tunnel::Vxlan as u32 | FROM_VM), 1, &reasons);
        assert_eq!((drop.tunnel, drop.from_vm), (Some(TunnelKind::Vxlan), true));
        let drop = PacketDrop::new(&key(Tunnel::None as u32), 1, &reasons);
        assert_eq!((drop.tunnel, drop.from_vm), (None, false));
    }
}
