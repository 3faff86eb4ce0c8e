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
    /// How many packets on the wire.
    pub packets: u64,
}

impl PacketDrop {
    /// Whether only a copy was lost: a packet socket (tcpdump, say) could not keep up. V's packet
    /// itself went on.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.reason == "PACKET_SOCK_ERROR"
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
    fn hidden_addresses_name_nothing() {
        assert_eq!(nearest("0000000000000000 T first\n", 0xffff_2010), None);
    }
}
