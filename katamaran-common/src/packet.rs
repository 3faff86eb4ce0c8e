//! Header parsing, generic over where the bytes come from: a slice on the host, an skb in BPF.
//!
//! Everything is inlined: the BPF verifier follows one straight path, and no struct is passed by
//! pointer between functions that it would have to prove twice.

/// Where packet bytes come from.
///
/// Headers are read as 32-bit words, not bytes: the BPF compiler keeps words in registers, while it
/// moves arrays of bytes through the stack one by one and overflows its 512 bytes.
pub trait PacketRead {
    /// Reads `N` 32-bit words at `offset`, each as it stands in memory (so in network order), or
    /// nothing when the packet ends before them.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// Reads the byte at `offset`.
    fn byte(&self, offset: u32) -> Option<u8>;

    /// Reads 16 bits at `offset`, in host order.
    fn half(&self, offset: u32) -> Option<u16>;

    /// Takes steps until one says to stop, at most `times`.
    ///
    /// A BPF program overrides it with `bpf_loop`: the verifier walks through a plain loop turn by
    /// turn, and gives up on one with branches in it.
    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, times: u32, state: &mut S)
    where
        Self: Sized,
    {
        for _ in 0..times {
            if !state.step(self) {
                return;
            }
        }
    }
}

/// One turn of a loop over a packet.
pub trait Step<R> {
    /// Does it; whether to go on.
    fn step(&mut self, packet: &R) -> bool;
}

impl PacketRead for &[u8] {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.get(start..start.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Some(words)
    }

    fn byte(&self, offset: u32) -> Option<u8> {
        self.get(offset as usize).copied()
    }

    fn half(&self, offset: u32) -> Option<u16> {
        let bytes = self.get(offset as usize..)?.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*bytes))
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
/// Ethertype of a VLAN tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// What GRE calls a whole Ethernet frame.
pub const ETHERTYPE_FRAME: u16 = 0x6558;

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
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// An address of either family: IPv4 as the 16 bytes that it has as a v4-mapped IPv6 address.
///
/// The words are as they stand in memory, so that it is a map's key as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Address {
    /// In network order.
    pub words: [u32; 4],
}

impl Address {
    /// The unspecified address of IPv6.
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// From an IPv4 address as it stands in memory.
    #[must_use]
    #[inline(always)]
    pub const fn mapped(v4: u32) -> Self {
        Self {
            words: [0, 0, 0xffff_u32.to_be(), v4],
        }
    }

    /// From the 16 bytes.
    #[must_use]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self {
            words: [
                u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
                u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
                u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
            ],
        }
    }

    /// The 16 bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (to, from) in bytes.chunks_exact_mut(4).zip(self.words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }
}

/// What the IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source, v4-mapped.
    pub source: Address,
    /// Destination, v4-mapped.
    pub destination: Address,
    /// The L4 protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// Identification of IPv4, or of an IPv6 fragment; 0 where there is none.
    pub id: u32,
    /// Fragment offset and "more fragments"; 0 for a whole packet.
    pub fragment: u16,
    /// IPv4?
    pub v4: bool,
    /// DSCP and ECN.
    pub traffic_class: u8,
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
    /// TCP data offset, flags without the ECN bits, and window.
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
#[expect(clippy::cast_possible_truncation, reason = "picks fields out of words")]
fn parse_v4<R: PacketRead>(packet: &R, offset: u32, room: u32) -> Option<Ip> {
    let words = packet.words::<5>(offset)?;
    let first = u32::from_be(words[0]);
    let second = u32::from_be(words[1]);
    let third = u32::from_be(words[2]);
    let header_length = ((first >> 24) & 0x0f) * 4;
    if first >> 28 != 4 || header_length < IPV4_LENGTH {
        return None;
    }
    let declared = first & 0xffff;
    Some(Ip {
        source: Address::mapped(words[3]),
        destination: Address::mapped(words[4]),
        protocol: (third >> 16) as u8,
        id: second >> 16,
        fragment: (second & 0x3fff) as u16,
        v4: true,
        traffic_class: (first >> 16) as u8,
        offset,
        l4_offset: offset + header_length,
        length: if declared == 0 { room } else { declared },
    })
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "picks fields out of words")]
fn parse_v6<R: PacketRead>(packet: &R, offset: u32, room: u32) -> Option<Ip> {
    let words = packet.words::<10>(offset)?;
    let first = u32::from_be(words[0]);
    let second = u32::from_be(words[1]);
    if first >> 28 != 6 {
        return None;
    }
    let declared = second >> 16;
    let mut ip = Ip {
        source: Address {
            words: [words[2], words[3], words[4], words[5]],
        },
        destination: Address {
            words: [words[6], words[7], words[8], words[9]],
        },
        protocol: (second >> 8) as u8,
        id: 0,
        fragment: 0,
        v4: false,
        traffic_class: (first >> 20) as u8,
        offset,
        l4_offset: offset + IPV6_LENGTH,
        length: if declared == 0 {
            room
        } else {
            declared + IPV6_LENGTH
        },
    };
    // Four extension headers are more than any sane packet has, and a bound the verifier accepts.
    for _ in 0..4 {
        if ip.protocol == protocol::FRAGMENT {
            let words = packet.words::<2>(ip.l4_offset)?;
            let first = u32::from_be(words[0]);
            ip.fragment = (first & 0xfff9) as u16;
            ip.id = u32::from_be(words[1]);
            ip.protocol = (first >> 24) as u8;
            ip.l4_offset += 8;
            if ip.fragment & 0xfff8 != 0 {
                break;
            }
        } else if ip.protocol == protocol::HOP_BY_HOP
            || ip.protocol == protocol::ROUTING
            || ip.protocol == protocol::DESTINATION
        {
            let extension = packet.half(ip.l4_offset)?;
            ip.protocol = (extension >> 8) as u8;
            ip.l4_offset += ((extension as u32 & 0xff) + 1) * 8;
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
    let mut l4 = L4 {
        header: 0,
        payload: body,
        ports: 0,
        sequence: 0,
        acknowledged: 0,
        control: 0,
    };
    if ip.fragment != 0 {
        return l4;
    }
    if ip.protocol == protocol::TCP {
        if let Some(words) = packet.words::<4>(ip.l4_offset) {
            let control = u32::from_be(words[3]);
            let length = (control >> 28) * 4;
            if length >= 20 && length <= body {
                l4.header = length;
                l4.payload = body - length;
                l4.ports = words[0];
                l4.sequence = u32::from_be(words[1]);
                l4.acknowledged = u32::from_be(words[2]);
                l4.control = control & !TCP_ECN;
            }
        }
    } else if ip.protocol == protocol::UDP
        && body >= 8
        && let Some(words) = packet.words::<1>(ip.l4_offset)
    {
        l4.header = 8;
        l4.payload = body - 8;
        l4.ports = words[0];
    }
    l4
}

/// The bits for ECN (CWR, ECE, AE) beside TCP's flags.
const TCP_ECN: u32 = 0x01c0_0000;

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
        assert_eq!(
            ip.destination,
            Address::mapped(u32::from_ne_bytes([10, 0, 0, 2]))
        );
        assert_eq!(ip.destination.bytes()[12..], [10, 0, 0, 2]);
        assert_eq!(
            (ip.id, ip.fragment, ip.length, ip.l4_offset),
            (7, 0, 60, 20)
        );
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
        assert_eq!(
            (ip.protocol, ip.l4_offset, ip.id, ip.fragment),
            (protocol::UDP, 56, 5, 1)
        );
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
