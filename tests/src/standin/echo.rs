//! The guest's network: answers ARP, neighbour solicitations, UDP and TCP to the echo port and questions for its status.
//!
//! No segmentation, no checksum offload: a guest whose driver offers none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::{ICMPV6, Packet, TCP, UDP, u16_at};
use super::tcp::Connections;
use crate::lab::{CONTROL_PORT, ECHO_PORT};

const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const UDP_CHECKSUM: usize = 6;
const ICMPV6_CHECKSUM: usize = 2;

/// What the guest knows and has counted; moves with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Guest {
    pub(super) mac: [u8; 6],
    pub(super) addresses: Vec<IpAddr>,
    /// Of the network card.
    pub(super) mtu: u16,
    /// The gateway's Ethernet address: whoever asked for ours.
    pub(super) gateway: Option<[u8; 6]>,
    pub(super) udp_received: u64,
    /// Datagrams that came after one of the same run with a higher number.
    pub(super) udp_late: u64,
    /// Runs of numbered datagrams, and the highest number of each.
    pub(super) runs: Vec<(u64, u64)>,
    pub(super) ignored: u64,
    pub(super) connections: Connections,
}

impl Guest {
    /// The frames that a frame is answered with.
    pub(super) fn answer(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let answer = self.answer_to(frame);
        self.ignored += u64::from(answer.is_none());
        answer.unwrap_or_default()
    }

    fn answer_to(&mut self, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
        let sender: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
        let kind = u16_at(frame, 12)?;
        if kind == ARP {
            return Some(vec![self.arp(frame, sender)?]);
        }
        if kind != IPV4 && kind != IPV6 {
            return None;
        }
        let packet = Packet::parse(&frame[ETHERNET..])?;
        if packet.protocol == ICMPV6 {
            return Some(vec![self.neighbour(packet, sender)?]);
        }
        if !self.has(packet.to) {
            return None;
        }
        let packets = match packet.protocol {
            UDP => vec![self.udp(packet)?],
            TCP => self.connections.receive(packet, self.mtu)?,
            _ => return None,
        };
        let gateway = self.gateway?;
        let frames = packets.iter();
        Some(
            frames
                .map(|packet| self.ethernet(gateway, kind, packet))
                .collect(),
        )
    }

    fn has(&self, address: impl Into<IpAddr>) -> bool {
        self.addresses.contains(&address.into())
    }

    fn arp(&mut self, frame: &[u8], sender: [u8; 6]) -> Option<Vec<u8>> {
        let packet = frame.get(ETHERNET..ETHERNET + 28)?;
        let wanted: [u8; 4] = packet[24..28].try_into().ok()?;
        if u16_at(packet, 6)? != 1 || !self.has(Ipv4Addr::from(wanted)) {
            return None;
        }
        self.gateway = Some(sender);
        let head = &packet[..6];
        let answer = [head, &[0, 2], &self.mac, &wanted, &packet[8..18]].concat();
        Some(self.ethernet(sender, ARP, &answer))
    }

    fn neighbour(&mut self, packet: Packet<'_>, sender: [u8; 6]) -> Option<Vec<u8>> {
        let message = packet.content;
        let wanted: [u8; 16] = message.get(8..24)?.try_into().ok()?;
        if message[0] != SOLICITATION || !self.has(Ipv6Addr::from(wanted)) {
            return None;
        }
        self.gateway = Some(sender);
        // Solicited, override; option: target link-layer address.
        let mut body = vec![ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0];
        body.extend(wanted);
        body.extend([2, 1]);
        body.extend(self.mac);
        let answer = Packet {
            from: wanted.into(),
            to: packet.from,
            protocol: ICMPV6,
            content: &body,
        };
        Some(self.ethernet(sender, IPV6, &answer.wire(ICMPV6_CHECKSUM)?))
    }

    fn udp(&mut self, packet: Packet<'_>) -> Option<Vec<u8>> {
        let datagram = packet.content;
        let length = usize::from(u16_at(datagram, 4)?);
        let payload = datagram.get(8..length)?;
        let payload = match u16_at(datagram, 2)? {
            ECHO_PORT => {
                self.udp_received += 1;
                self.note_order(payload);
                payload.to_vec()
            }
            CONTROL_PORT => self.command(&String::from_utf8_lossy(payload)).into_bytes(),
            _ => return None,
        };
        let length = u16::try_from(8 + payload.len()).ok()?.to_be_bytes();
        let ports = [&datagram[2..4], &datagram[..2]].concat();
        let content = [&ports, &length[..], &[0, 0], &payload].concat();
        let answer = Packet {
            from: packet.to,
            to: packet.from,
            protocol: UDP,
            content: &content,
        };
        answer.wire(UDP_CHECKSUM)
    }

    /// The run and the number, 64 bits each, are in front.
    fn note_order(&mut self, datagram: &[u8]) {
        let word = |at: usize| {
            let bytes = datagram.get(at..at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let Some((run, number)) = word(0).zip(word(8)) else {
            return;
        };
        match self.runs.iter_mut().find(|(known, _)| *known == run) {
            Some((_, highest)) if number < *highest => self.udp_late += 1,
            Some((_, highest)) => *highest = number,
            None => self.runs.push((run, number)),
        }
    }

    fn command(&self, command: &str) -> String {
        match command {
            "status" => format!(
                "udp_received={} udp_late={} udp_dropped=0 udp_send_errors=0 tcp_bytes={} ignored={}",
                self.udp_received,
                self.udp_late,
                self.connections.received_bytes(),
                self.ignored
            ),
            other => format!("error: unknown command {other:?}"),
        }
    }

    fn ethernet(&self, to: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
        [&to[..], &self.mac, &kind.to_be_bytes(), content].concat()
    }

    /// What tells a switch where the guest is now.
    pub(super) fn announcement(&self) -> Vec<u8> {
        // RARP, request reverse: "who am I".
        let head = [0, 1, 8, 0, 6, 4, 0, 3];
        let body = [&head[..], &self.mac, &[0; 4], &self.mac, &[0; 4]].concat();
        let mut frame = self.ethernet([0xff; 6], 0x8035, &body);
        frame.resize(60, 0);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standin::ip::checksum;

    fn guest() -> Guest {
        Guest {
            mac: [2, 0, 0, 0, 0, 5],
            addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            mtu: 1450,
            gateway: Some([0xee; 6]),
            ..Guest::default()
        }
    }

    fn only(answers: Vec<Vec<u8>>) -> Vec<u8> {
        let [answer] = <[Vec<u8>; 1]>::try_from(answers).unwrap();
        answer
    }

    /// A datagram to the guest's echo port from port 9, as the network would bring it.
    fn datagram(payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        [&[0, 9, 0, 7, length[0], length[1], 0, 0], payload].concat()
    }

    #[test]
    fn a_datagram_comes_back_with_valid_checksums() {
        let mut guest = guest();
        let udp = datagram(b"hello");
        let length = u8::try_from(20 + udp.len()).unwrap();
        let mut packet = vec![
            0x45, 0, 0, length, 0, 0, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 2, 10, 0, 0, 5,
        ];
        packet.extend(&udp);
        let frame = [&[2, 0, 0, 0, 0, 5][..], &[0xee; 6], &[8, 0], &packet].concat();
        let answer = only(guest.answer(&frame));
        assert_eq!(answer[..6], [0xee; 6]);
        let packet = &answer[ETHERNET..];
        assert_eq!(checksum(&[&packet[..20]]), 0);
        let pseudo = [&packet[12..20], &[0, UDP, 0, 13]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[20..]]), 0);
        assert_eq!(packet[20..24], [0, 7, 0, 9]);
        assert_eq!(&packet[28..], b"hello");
        assert_eq!(guest.udp_received, 1);
    }

    #[test]
    fn datagrams_that_were_overtaken_are_counted_run_by_run() {
        let mut guest = guest();
        for (run, number) in [(1, 5), (2, 0), (1, 7), (1, 6), (2, 1), (1, 8)] {
            guest.note_order(&[u64::to_be_bytes(run), u64::to_be_bytes(number)].concat());
        }
        guest.note_order(b"short");
        assert_eq!(guest.udp_late, 1);
    }

    #[test]
    fn a_datagram_over_ipv6_comes_back_too() {
        let mut guest = guest();
        let udp = datagram(b"hello!");
        let from: Ipv6Addr = "fd00::2".parse().unwrap();
        let to: Ipv6Addr = "fd00::5".parse().unwrap();
        let packet = Packet {
            from: from.into(),
            to: to.into(),
            protocol: UDP,
            content: &udp,
        };
        let packet = packet.wire(UDP_CHECKSUM).unwrap();
        let frame = [&[2, 0, 0, 0, 0, 5][..], &[0xee; 6], &[0x86, 0xdd], &packet].concat();
        let answer = only(guest.answer(&frame));
        let packet = &answer[ETHERNET..];
        let pseudo = [&packet[8..40], &[0, 0, 0, 14, 0, 0, 0, UDP]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[40..]]), 0);
        assert_eq!(&packet[48..], b"hello!");
    }

    #[test]
    fn who_asks_for_the_guest_is_its_gateway() {
        let mut guest = guest();
        guest.gateway = None;
        let question = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &[0xaa; 6],
            &[10, 0, 0, 1],
            &[0; 6],
            &[10, 0, 0, 5],
        ]
        .concat();
        let frame = [&[0xff; 6][..], &[0xaa; 6], &[8, 6], &question].concat();
        let answer = only(guest.answer(&frame));
        assert_eq!(answer[20..22], [0, 2]);
        assert_eq!(answer[22..28], guest.mac);
        assert_eq!(answer[28..32], [10, 0, 0, 5]);
        assert_eq!(answer[38..42], [10, 0, 0, 1]);
        assert_eq!(guest.gateway, Some([0xaa; 6]));
        assert!(guest.answer(&frame[..20]).is_empty());
    }
}
