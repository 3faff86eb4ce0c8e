//! Headers and checksums of IP packets, as the guest writes them.

use std::net::IpAddr;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// An IP packet and what is in it, as far as the guest looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    pub(super) content: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a whole packet; a fragment, or one with extension headers, is none.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 0xf) * 4;
                let total = usize::from(u16_at(packet, 2)?);
                let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                (u16_at(packet, 6)? & 0x3fff == 0).then_some(Self {
                    from: from.into(),
                    to: to.into(),
                    protocol: packet[9],
                    content: packet.get(header..total)?,
                })
            }
            6 => {
                let length = usize::from(u16_at(packet, 4)?);
                let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                Some(Self {
                    from: from.into(),
                    to: to.into(),
                    protocol: packet[6],
                    content: packet.get(40..40 + length)?,
                })
            }
            _ => None,
        }
    }

    /// The packet on the wire. Fills in the checksum of its content, at `checksum_at`.
    pub(super) fn wire(self, checksum_at: usize) -> Option<Vec<u8>> {
        let mut content = self.content.to_vec();
        let length = u16::try_from(content.len()).ok()?;
        let sum = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [high, low] = length.to_be_bytes();
                let tail = [0, self.protocol, high, low];
                checksum(&[&from.octets(), &to.octets(), &tail, &content])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let tail = [0, 0, 0, self.protocol];
                let length = u32::from(length).to_be_bytes();
                checksum(&[&from.octets(), &to.octets(), &length, &tail, &content])
            }
            _ => return None,
        };
        // RFC 768: zero says that there is none, and is the same number as this one.
        let sum = if sum == 0 { 0xffff } else { sum };
        content[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut packet = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [high, low] = (length.checked_add(20)?).to_be_bytes();
                let head = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, self.protocol, 0, 0];
                let mut header = [&head[..], &from.octets(), &to.octets()].concat();
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [high, low] = length.to_be_bytes();
                // RFC 4861, 7.1.2: neighbours' messages have come over no router.
                let hops = if self.protocol == ICMPV6 { 255 } else { 64 };
                let head = [0x60, 0, 0, 0, high, low, self.protocol, hops];
                [&head[..], &from.octets(), &to.octets()].concat()
            }
            _ => return None,
        };
        packet.extend(content);
        Some(packet)
    }
}

/// The internet checksum. All parts but the last are of an even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
