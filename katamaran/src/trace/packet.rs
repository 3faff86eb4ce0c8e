//! From what the kernel tells to what is told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::hop::{self, Hop};
use super::places::Places;
use super::record::{Direction, Dropped, Packet, Place};
use super::wall_clock;
use crate::ebpf::{DroppedPacket, PacketDrop, Symbols, TunnelKind};

/// The symbols are read again for a place that is in none of them when they are older: a module may have come.
const SYMBOLS_AGE: Duration = Duration::from_secs(10);

/// Gives names to what the kernel tells in numbers.
#[derive(Debug, Default)]
pub(super) struct Namer {
    symbols: Option<(Symbols, Instant)>,
    functions: HashMap<u64, Option<String>>,
    places: Places,
    /// What qdisc dropped packets in a place.
    qdiscs: HashMap<(u64, u32, u32), String>,
}

impl Namer {
    /// Puts the function's name in.
    pub(super) fn name_function(&mut self, drop: &mut PacketDrop) {
        if let Some(known) = self.functions.get(&drop.location) {
            drop.symbol.clone_from(known);
            return;
        }
        let outdated = self.symbols.as_ref().is_none_or(|(symbols, read)| {
            symbols.is_foreign(drop.location) && read.elapsed() > SYMBOLS_AGE
        });
        if outdated {
            self.symbols = Some((Symbols::of_kernel(), Instant::now()));
        }
        drop.symbol = self
            .symbols
            .as_ref()
            .and_then(|(symbols, _)| symbols.name(drop.location));
        self.functions.insert(drop.location, drop.symbol.clone());
    }

    /// What is told of one drop, whose function has its name.
    pub(super) fn dropped(&mut self, packet: &DroppedPacket) -> Dropped {
        let drop = &packet.drop;
        if let Some(device) = &packet.device {
            self.places
                .note_device(drop.netns_inum, drop.ifindex, device);
        }
        if hop::of(&drop.reason, drop.symbol.as_deref()) == Hop::Qdisc
            && let Some((kind, major)) = &packet.qdisc
        {
            let qdisc = match major {
                0 => kind.clone(),
                major => format!("{kind} {major:x}:"),
            };
            self.qdiscs.insert(place_of(drop), qdisc);
        }
        Dropped {
            time: wall_clock::of_monotonic(packet.time_ns),
            place: self.place(drop),
            packet: told(packet),
        }
    }

    /// Where and why.
    pub(super) fn place(&mut self, drop: &PacketDrop) -> Place {
        Place {
            reason: drop.reason.clone(),
            hop: hop::of(&drop.reason, drop.symbol.as_deref()),
            symbol: drop.symbol.clone(),
            location: format!("{:#x}", drop.location),
            device: self.places.device(drop.netns_inum, drop.ifindex),
            ifindex: (drop.ifindex != 0).then_some(drop.ifindex),
            netns: self.places.namespace(drop.netns_inum),
            netns_inode: (drop.netns_inum != 0).then_some(drop.netns_inum),
            qdisc: self.qdiscs.get(&place_of(drop)).cloned(),
            direction: if drop.from_vm {
                Direction::FromVm
            } else {
                Direction::ToVm
            },
            tunnel: drop.tunnel.map(|tunnel| match tunnel {
                TunnelKind::Ip => "ipip",
                TunnelKind::Gre => "gre",
                TunnelKind::Vxlan => "vxlan",
            }),
        }
    }
}

fn place_of(drop: &PacketDrop) -> (u64, u32, u32) {
    (drop.location, drop.netns_inum, drop.ifindex)
}

fn told(packet: &DroppedPacket) -> Packet {
    Packet {
        source: packet.source,
        source_port: packet.ports.map(|(source, _)| source),
        destination: packet.destination,
        destination_port: packet.ports.map(|(_, destination)| destination),
        protocol: protocol(packet.protocol),
        tcp_flags: (packet.protocol == TCP && packet.ports.is_some())
            .then(|| tcp_flags(packet.tcp_flags)),
        fragment: packet.fragment,
        length: packet.length,
        packets: packet.drop.packets,
    }
}

const TCP: u8 = 6;

fn protocol(number: u8) -> String {
    let name = match number {
        1 => "ICMP",
        4 => "IPIP",
        TCP => "TCP",
        17 => "UDP",
        41 => "IPv6",
        47 => "GRE",
        50 => "ESP",
        58 => "ICMPv6",
        132 => "SCTP",
        number => return format!("protocol {number}"),
    };
    name.to_owned()
}

fn tcp_flags(flags: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    let set: Vec<&str> = names
        .into_iter()
        .enumerate()
        .filter_map(|(bit, name)| (flags & (1 << bit) != 0).then_some(name))
        .collect();
    set.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_flags_have_names() {
        assert_eq!(protocol(17), "UDP");
        assert_eq!(protocol(99), "protocol 99");
        assert_eq!(tcp_flags(0x12), "SYN,ACK");
        assert_eq!(tcp_flags(0), "");
    }
}
