//! The guest's network: answers ARP, neighbour solicitations, UDP to the echo port and questions for its status.
//!
//! No segmentation, no checksum offload: a guest whose driver offers none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::{CONTROL_PORT, ECHO_PORT};

const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// What the guest knows and has counted; moves with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Guest {
    pub(super) mac: [u8; 6],
    pub(super) addresses: Vec<IpAddr>,
    /// The gateway's Ethernet address: whoever asked for ours.
    pub(super) gateway: Option<[u8; 6]>,
    pub(super) udp_received: u64,
    pub(super) ignored: u64,
}

impl Guest {
    /// The answer to a frame, if it gets one.
    pub(super) fn answer(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let answer = self.answer_to(frame);
        self.ignored += u64::from(answer.is_none());
        answer
    }

    fn answer_to(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let sender: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
        match u16_at(frame, 12)? {
            ARP => self.arp(frame, sender),
            IPV4 => self.ipv4(frame),
            IPV6 if frame.get(ETHERNET + 6) == Some(&ICMPV6) => self.neighbour(frame, sender),
            IPV6 => self.ipv6(frame),
            _ => None,
        }
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

    fn neighbour(&mut self, frame: &[u8], sender: [u8; 6]) -> Option<Vec<u8>> {
        let asker: [u8; 16] = frame.get(ETHERNET + 8..ETHERNET + 24)?.try_into().ok()?;
        let message = frame.get(ETHERNET + 40..)?;
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
        let sum = checksum(&[&pseudo_v6(&wanted, &asker, body.len(), ICMPV6), &body]);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        let packet = [header_v6(&wanted, &asker, body.len(), ICMPV6, 255), body].concat();
        Some(self.ethernet(sender, IPV6, &packet))
    }

    fn ipv4(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = &frame[ETHERNET..];
        let header = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(u16_at(packet, 2)?);
        let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
        let own: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        let fragment = u16_at(packet, 6)? & 0x3fff != 0;
        if packet.get(9) != Some(&UDP) || fragment || !self.has(Ipv4Addr::from(own)) {
            return None;
        }
        let mut udp = self.udp(packet.get(header..total)?)?;
        let pseudo = [
            &own[..],
            &source,
            &[0, UDP],
            &u16::try_from(udp.len()).ok()?.to_be_bytes(),
        ]
        .concat();
        fill_udp_checksum(&mut udp, &pseudo);
        let length = u16::try_from(20 + udp.len()).ok()?.to_be_bytes();
        let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, UDP, 0, 0];
        header.extend(own);
        header.extend(source);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(udp);
        Some(self.ethernet(self.gateway?, IPV4, &header))
    }

    fn ipv6(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = &frame[ETHERNET..];
        let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
        let own: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        if packet.get(6) != Some(&UDP) || !self.has(Ipv6Addr::from(own)) {
            return None;
        }
        let length = usize::from(u16_at(packet, 4)?);
        let mut udp = self.udp(packet.get(40..40 + length)?)?;
        let pseudo = pseudo_v6(&own, &source, udp.len(), UDP);
        fill_udp_checksum(&mut udp, &pseudo);
        let packet = [header_v6(&own, &source, udp.len(), UDP, 64), udp].concat();
        Some(self.ethernet(self.gateway?, IPV6, &packet))
    }

    /// The answering datagram, without its checksum.
    fn udp(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let length = usize::from(u16_at(datagram, 4)?);
        let payload = datagram.get(8..length)?;
        let payload = match u16_at(datagram, 2)? {
            ECHO_PORT => {
                self.udp_received += 1;
                payload.to_vec()
            }
            CONTROL_PORT => self.command(&String::from_utf8_lossy(payload)).into_bytes(),
            _ => return None,
        };
        let length = u16::try_from(8 + payload.len()).ok()?.to_be_bytes();
        let ports = [&datagram[2..4], &datagram[..2]].concat();
        Some([&ports, &length[..], &[0, 0], &payload].concat())
    }

    fn command(&self, command: &str) -> String {
        match command {
            "status" => format!(
                "udp_received={} udp_dropped=0 udp_send_errors=0 tcp_bytes=0 ignored={}",
                self.udp_received, self.ignored
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

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn header_v6(from: &[u8], to: &[u8], length: usize, next: u8, hops: u8) -> Vec<u8> {
    let length = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, hops], from, to].concat()
}

fn pseudo_v6(from: &[u8], to: &[u8], length: usize, next: u8) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [from, to, &length, &[0, 0, 0, next]].concat()
}

fn fill_udp_checksum(datagram: &mut [u8], pseudo: &[u8]) {
    let sum = match checksum(&[pseudo, datagram]) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// The internet checksum. All parts but the last are of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        Guest {
            mac: [2, 0, 0, 0, 0, 5],
            addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            gateway: Some([0xee; 6]),
            ..Guest::default()
        }
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
        let answer = guest.answer(&frame).unwrap();
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
    fn a_datagram_over_ipv6_comes_back_too() {
        let mut guest = guest();
        let udp = datagram(b"hello!");
        let from: Ipv6Addr = "fd00::2".parse().unwrap();
        let to: Ipv6Addr = "fd00::5".parse().unwrap();
        let packet = [
            header_v6(&from.octets(), &to.octets(), udp.len(), UDP, 64),
            udp,
        ]
        .concat();
        let frame = [&[2, 0, 0, 0, 0, 5][..], &[0xee; 6], &[0x86, 0xdd], &packet].concat();
        let answer = guest.answer(&frame).unwrap();
        let packet = &answer[ETHERNET..];
        let pseudo = pseudo_v6(&packet[8..24], &packet[24..40], 14, UDP);
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
        let answer = guest.answer(&frame).unwrap();
        assert_eq!(answer[20..22], [0, 2]);
        assert_eq!(answer[22..28], guest.mac);
        assert_eq!(answer[28..32], [10, 0, 0, 5]);
        assert_eq!(answer[38..42], [10, 0, 0, 1]);
        assert_eq!(guest.gateway, Some([0xaa; 6]));
        assert!(guest.answer(&frame[..20]).is_none());
    }
}
