//! What the kernel dropped of V's packets, with its own reason.

use std::fs;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use katamaran_common::layout::DropKey;
use katamaran_common::names;

use super::error::EbpfError;
use super::object;
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
    /// The packet's device (in the namespace of the hooks or of the tap).
    pub ifindex: u32,
    /// Whether it still had, or already had, the outer header of the tunnel.
    pub tunnelled: bool,
    /// How many packets on the wire.
    pub packets: u64,
}

impl PacketDrop {
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

pub(super) struct DropMap {
    drops: HashMap<MapData, DropKey, u64>,
}

impl DropMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            drops: object::map(ebpf, names::MAP_DROPS)?,
        })
    }

    /// All drops, the most frequent first.
    pub(super) fn read(&self, reasons: &DropReasons) -> Result<Vec<PacketDrop>, EbpfError> {
        let mut found = Vec::new();
        for entry in self.drops.iter() {
            let (key, packets) = entry.map_err(EbpfError::map("read", names::MAP_DROPS))?;
            found.push(PacketDrop {
                reason: reasons.name(key.reason),
                symbol: None,
                location: key.location,
                ifindex: key.ifindex,
                tunnelled: key.tunnelled != 0,
                packets,
            });
        }
        name_locations(&mut found);
        found.sort_by_key(|drop| (u64::MAX - drop.packets, drop.location, drop.ifindex));
        Ok(found)
    }
}

/// Looks the addresses up. The table of symbols is long: it is read only when there are drops.
fn name_locations(drops: &mut [PacketDrop]) {
    if drops.is_empty() {
        return;
    }
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    for drop in drops {
        drop.symbol = nearest(&symbols, drop.location);
    }
}

fn nearest(symbols: &str, location: u64) -> Option<String> {
    let (start, name) = symbols
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let start = u64::from_str_radix(fields.next()?, 16).ok()?;
            Some((start, fields.nth(1)?))
        })
        .filter(|(start, _)| *start != 0 && *start <= location)
        .max_by_key(|(start, _)| *start)?;
    Some(format!("{name}+{:#x}", location - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_named_by_the_symbol_before_it() {
        let symbols = "ffff1000 T first\nffff2000 t second [module]\nffff3000 T third\n";
        assert_eq!(nearest(symbols, 0xffff_2010).unwrap(), "second+0x10");
        assert_eq!(nearest(symbols, 0xff), None);
    }

    #[test]
    fn pieces_and_copies_of_a_packet_are_no_loss() {
        let drop = |reason: &str, symbol: &str| PacketDrop {
            reason: reason.to_owned(),
            symbol: Some(symbol.to_owned()),
            location: 0,
            ifindex: 1,
            tunnelled: false,
            packets: 1,
        };
        assert!(drop("NOT_SPECIFIED", "skb_release_data+0x163").is_no_loss());
        assert!(drop("PACKET_SOCK_ERROR", "packet_rcv+0x1").is_no_loss());
        assert!(!drop("NETFILTER_DROP", "nf_hook_slow+0x1").is_no_loss());
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        assert_eq!(nearest("0000000000000000 T first\n", 0xffff_2010), None);
    }
}
