//! Which of QEMU's network cards is behind which tap.
//!
//! QMP does not tell. The human monitor does (`hmp_info_network()`, net/net.c): a line for each card, and one for each queue of
//! what is behind it.
//!
//! ```text
//!   nic0: index=0,type=nic,model=virtio-net-pci,macaddr=02:00:00:00:00:05
//!    \ net0: index=0,type=tap,ifname=tap0,script=no,downscript=no
//! ```
//!
//! A tap that was handed over as a descriptor (Kata does so) says `fd=30` in place of `ifname`.

use super::TapDescriptor;
use crate::net::link::MacAddr;

/// A network card with a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// The tap's name.
    pub tap: String,
}

/// The cards with taps, in QEMU's order. `told` is what `info network` says, `taps` are the process's descriptors.
#[must_use]
pub fn cards(told: &str, taps: &[TapDescriptor]) -> Vec<Card> {
    let mut cards: Vec<Card> = Vec::new();
    let mut mac = None;
    for line in told.lines() {
        let behind = line.trim_start().strip_prefix('\\');
        let Some(fields) = behind.unwrap_or(line).split_once(": ").map(|(_, f)| f) else {
            continue;
        };
        let field = |name: &str| {
            let mut fields = fields.split(',');
            fields.find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
        };
        if behind.is_none() {
            mac = field("macaddr").and_then(|mac| mac.parse().ok());
            continue;
        }
        let by_number = |number: i32| taps.iter().find(|tap| tap.fd == number);
        let tap = match (field("type"), field("ifname"), field("fd")) {
            (Some("tap"), Some(name), _) => Some(name.to_owned()),
            (Some("tap"), None, Some(number)) => number
                .parse()
                .ok()
                .and_then(by_number)
                .map(|tap| tap.name.clone()),
            _ => None,
        };
        if let (Some(mac), Some(tap)) = (mac, tap) {
            let card = Card { mac, tap };
            // Each queue has a line.
            if !cards.contains(&card) {
                cards.push(card);
            }
        }
    }
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(fd: i32, name: &str) -> TapDescriptor {
        TapDescriptor {
            fd,
            name: name.to_owned(),
        }
    }

    fn told(cards: &[Card]) -> Vec<(String, &str)> {
        let card = |card: &'_ Card| card.mac.to_string();
        cards.iter().map(|c| (card(c), c.tap.as_str())).collect()
    }

    #[test]
    fn cards_are_told_by_the_names_of_their_taps() {
        let told_by_qemu = "nic0: index=0,type=nic,model=virtio-net-pci,macaddr=02:00:00:00:00:05\r\n \\ net0: \
                            index=0,type=tap,ifname=tap0,script=no,downscript=no\r\nnic1: \
                            index=0,type=nic,model=virtio-net-pci,macaddr=02:00:00:00:00:06\r\n \\ net1: \
                            index=0,type=tap,ifname=tap1,script=no,downscript=no\r\n";
        assert_eq!(
            told(&cards(told_by_qemu, &[])),
            [
                ("02:00:00:00:00:05".to_owned(), "tap0"),
                ("02:00:00:00:00:06".to_owned(), "tap1")
            ]
        );
    }

    #[test]
    fn and_by_descriptors_each_queue_of_which_has_a_line() {
        let told_by_qemu = "net: index=0,type=nic,model=virtio-net-pci,macaddr=02:00:00:00:00:05\n \\ n: index=0,type=tap,fd=30\n \\ n: \
                            index=1,type=tap,fd=31\nother: index=0,type=nic,model=e1000,macaddr=02:00:00:00:00:06\n \\ u: \
                            index=0,type=user,net=10.0.2.0\n";
        let taps = [tap(30, "tap0_kata"), tap(31, "tap0_kata")];
        assert_eq!(
            told(&cards(told_by_qemu, &taps)),
            [("02:00:00:00:00:05".to_owned(), "tap0_kata")]
        );
        assert!(cards("Error: no such thing\n", &taps).is_empty());
    }
}
