//! Header parsing, generic over where the bytes come from: a slice on the host, an skb in BPF.
//!
//! Everything is inlined: the BPF verifier follows one straight path, and no struct is passed by
//! pointer between functions that it would have to prove twice.

/// Where packet bytes come from.
pub trait PacketRead {
    /// Reads `N` bytes at `offset`, or nothing when the packet ends before them.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl PacketRead for &[u8] {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// Length of an Ethernet header.
pub const ETHERNET_LENGTH: u32 = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LENGTH: u32 = 20;
/// Length of an IPv6 header.
pub const IPV6_LENGTH: u32 = 40;

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethertype of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// IP protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// An IPv4 address as the 16 bytes that it has as a v4-mapped IPv6 address.
#[must_use]
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// What the IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source, v4-mapped.
    pub source: [u8; 16],
    /// Destination, v4-mapped.
    pub destination: [u8; 16],
    /// The L4 protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// Identification of IPv4, or of an IPv6 fragment; 0 where there is none.
    pub id: u32,
    /// Fragment offset and "more fragments"; 0 for a whole packet.
    pub fragment: u16,
    /// IPv4?
    pub v4: bool,
    /// Where the IP header starts.
    pub offset: u32,
    /// Where L4 starts.
    pub l4_offset: u32,
    /// Length of the packet from the IP header on, bytes.
    pub length: u32,
}

/// What the L4 header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L4 {
    /// Length of the L4 header; 0 where it is not understood or the packet is a later fragment.
    pub header: u32,
    /// Bytes behind the L4 header.
    pub payload: u32,
    /// Both ports as they stand in the packet.
    pub ports: u32,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP acknowledgement.
    pub acknowledged: u32,
    /// TCP data offset, flags without the two ECN bits, and window.
    pub control: u32,
}

/// Reads the IP header at `offset`.
///
/// `room` is how many bytes the buffer holds from there. It is taken for the packet's length when
/// the header can't say (super-packets above 64 KiB); otherwise the header is believed, because short
/// frames are padded.
#[inline(always)]
pub fn parse_ip<R: PacketRead>(packet: &R, ethertype: u16, offset: u32, room: u32) -> Option<Ip> {
    if ethertype == ETHERTYPE_IPV4 {
        parse_v4(packet, offset, room)
    } else if ethertype == ETHERTYPE_IPV6 {
        parse_v6(packet, offset, room)
    } else {
        None
    }
}

#[inline(always)]
fn parse_v4<R: PacketRead>(packet: &R, offset: u32, room: u32) -> Option<Ip> {
    let header: [u8; 20] = packet.read(offset)?;
    let header_length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < IPV4_LENGTH {
        return None;
    }
    let declared = u32::from(u16::from_be_bytes([header[2], header[3]]));
    Some(Ip {
        source: mapped([header[12], header[13], header[14], header[15]]),
        destination: mapped([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        id: u32::from(u16::from_be_bytes([header[4], header[5]])),
        fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff,
        v4: true,
        offset,
        l4_offset: offset + header_length,
        length: if declared == 0 { room } else { declared },
    })
}

#[inline(always)]
fn parse_v6<R: PacketRead>(packet: &R, offset: u32, room: u32) -> Option<Ip> {
    let header: [u8; 8] = packet.read(offset)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let declared = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let mut ip = Ip {
        source: packet.read(offset + 8)?,
        destination: packet.read(offset + 24)?,
        protocol: header[6],
        id: 0,
        fragment: 0,
        v4: false,
        offset,
        l4_offset: offset + IPV6_LENGTH,
        length: if declared == 0 { room } else { declared + IPV6_LENGTH },
    };
    // Six extension headers are more than any sane packet has, and a bound the verifier accepts.
    for _ in 0..6 {
        if ip.protocol == protocol::FRAGMENT {
            let extension: [u8; 8] = packet.read(ip.l4_offset)?;
            ip.fragment = u16::from_be_bytes([extension[2], extension[3]]) & 0xfff9;
            ip.id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
            ip.protocol = extension[0];
            ip.l4_offset += 8;
            if ip.fragment & 0xfff8 != 0 {
                break;
            }
        } else if ip.protocol == protocol::HOP_BY_HOP
            || ip.protocol == protocol::ROUTING
            || ip.protocol == protocol::DESTINATION
        {
            let extension: [u8; 2] = packet.read(ip.l4_offset)?;
            ip.protocol = extension[0];
            ip.l4_offset += (u32::from(extension[1]) + 1) * 8;
        } else {
            break;
        }
    }
    Some(ip)
}

impl Ip {
    /// Bytes behind the IP headers.
    #[must_use]
    #[inline(always)]
    pub fn body(&self) -> u32 {
        self.length.saturating_sub(self.l4_offset - self.offset)
    }

    /// Bytes that each segment of a super-packet repeats.
    #[must_use]
    #[inline(always)]
    pub fn headers(&self, l4: &L4) -> u32 {
        self.l4_offset - self.offset + l4.header
    }
}

/// Reads the L4 header. What is not understood has no header and is all payload.
#[inline(always)]
pub fn parse_l4<R: PacketRead>(packet: &R, ip: &Ip) -> L4 {
    let body = ip.body();
    let mut l4 =
        L4 { header: 0, payload: body, ports: 0, sequence: 0, acknowledged: 0, control: 0 };
    if ip.fragment != 0 {
        return l4;
    }
    if ip.protocol == protocol::TCP {
        if let Some(header) = packet.read::<16>(ip.l4_offset) {
            let length = u32::from(header[12] >> 4) * 4;
            if length >= 20 && length <= body {
                l4.header = length;
                l4.payload = body - length;
                l4.ports = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
                l4.sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                l4.acknowledged =
                    u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
                l4.control =
                    u32::from_be_bytes([header[12], header[13] & 0x3f, header[14], header[15]]);
            }
        }
    } else if ip.protocol == protocol::UDP
        && body >= 8
        && let Some(header) = packet.read::<4>(ip.l4_offset)
    {
        l4.header = 8;
        l4.payload = body - 8;
        l4.ports = u32::from_be_bytes(header);
    }
    l4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v4_tcp_header_is_understood() {
        let mut bytes = [0u8; 64];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&60u16.to_be_bytes());
        bytes[4..6].copy_from_slice(&7u16.to_be_bytes());
        bytes[6] = 0x40;
        bytes[9] = protocol::TCP;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[24..28].copy_from_slice(&99u32.to_be_bytes());
        bytes[32] = 0x80;
        let packet = &bytes[..];
        let ip = parse_ip(&packet, ETHERTYPE_IPV4, 0, 64).unwrap();
        assert_eq!(ip.destination, mapped([10, 0, 0, 2]));
        assert_eq!((ip.id, ip.fragment, ip.length, ip.l4_offset), (7, 0, 60, 20));
        let l4 = parse_l4(&packet, &ip);
        assert_eq!((l4.header, l4.payload, l4.sequence), (32, 8, 99));
        assert_eq!(ip.headers(&l4), 52);
    }

    #[test]
    fn extension_headers_are_walked() {
        let mut bytes = [0u8; 80];
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&40u16.to_be_bytes());
        bytes[6] = protocol::DESTINATION;
        bytes[40] = protocol::FRAGMENT;
        bytes[48] = protocol::UDP;
        bytes[50..52].copy_from_slice(&1u16.to_be_bytes());
        bytes[52..56].copy_from_slice(&5u32.to_be_bytes());
        let ip = parse_ip(&&bytes[..], ETHERTYPE_IPV6, 0, 80).unwrap();
        assert_eq!((ip.protocol, ip.l4_offset, ip.id, ip.fragment), (protocol::UDP, 56, 5, 1));
    }

    #[test]
    fn truncated_and_foreign_packets_are_refused() {
        assert_eq!(parse_ip(&&[0x45u8; 19][..], ETHERTYPE_IPV4, 0, 19), None);
        assert_eq!(parse_ip(&&[0x65u8; 60][..], ETHERTYPE_IPV4, 0, 60), None);
        assert_eq!(parse_ip(&&[0x45u8; 60][..], ETHERTYPE_ARP, 0, 60), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: std::vec::Vec<u8>, v6: bool) {
            let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
            let room = u32::try_from(bytes.len()).unwrap();
            if let Some(ip) = parse_ip(&&bytes[..], ethertype, 0, room) {
                parse_l4(&&bytes[..], &ip);
            }
        }
    }
}
