//! Cuts super-packets into what goes over a wire, as a device would (Documentation/networking/segmentation-offloads.rst).

use std::ops::Range;

use katamaran_common::packet::{ETHERNET_LENGTH, Ip, protocol};

use super::checksum::{complete_checksum, write_checksum, write_header_checksum};
use super::parse;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The frames that a copy of an skb becomes on the wire: itself with its checksum filled in, or its segments.
/// `None` for a super-packet that is neither TCP nor UDP, or damaged.
#[must_use]
pub(crate) fn on_the_wire(mut frame: Vec<u8>, gso_size: u32) -> Option<Vec<Vec<u8>>> {
    if gso_size == 0 {
        complete_checksum(&mut frame);
        return Some(vec![frame]);
    }
    cut(&frame, usize::try_from(gso_size).ok()?)
}

/// Cuts a TCP or UDP super-packet into segments of `size` bytes of payload.
#[must_use]
fn cut(frame: &[u8], size: usize) -> Option<Vec<Vec<u8>>> {
    let ip = parse(frame)?;
    let l4 = usize::try_from(ip.l4_offset).ok()?;
    let end = l4.checked_add(usize::try_from(ip.body()).ok()?)?;
    let headers = l4
        + match ip.protocol {
            protocol::TCP => usize::from(frame.get(l4 + 12)? >> 4) * 4,
            protocol::UDP => 8,
            _ => return None,
        };
    if ip.fragment != 0 || size == 0 {
        return None;
    }
    let payload = frame.get(headers..end)?;
    let last = payload.len().div_ceil(size).max(1) - 1;
    let piece = |number: usize| -> Option<Vec<u8>> {
        let start = number * size;
        let carried = payload.get(start..payload.len().min(start + size))?;
        let mut segment = [frame.get(..headers)?, carried].concat();
        number_segment(&mut segment, &ip, number, start, number == last)?;
        Some(segment)
    };
    (0..=last).map(piece).collect()
}

/// Makes the headers those of segment `number`, which begins `start` bytes into the payload.
fn number_segment(
    segment: &mut [u8],
    ip: &Ip,
    number: usize,
    start: usize,
    is_last: bool,
) -> Option<()> {
    let header = usize::try_from(ETHERNET_LENGTH).ok()?;
    let l4 = usize::try_from(ip.l4_offset).ok()?;
    let length = segment.len();
    if ip.v4 {
        put(segment, header + 2..header + 4, length - header)?;
        let id = usize::try_from(ip.id).ok()?.wrapping_add(number);
        put(segment, header + 4..header + 6, id & 0xffff)?;
        write_header_checksum(segment.get_mut(header..l4)?)?;
    } else {
        put(segment, header + 4..header + 6, length - header - 40)?;
    }
    if ip.protocol == protocol::UDP {
        put(segment, l4 + 4..l4 + 6, length - l4)?;
    } else {
        let sequence = segment.get_mut(l4 + 4..l4 + 8)?;
        let first = u32::from_be_bytes(*sequence.first_chunk()?);
        let own = first.wrapping_add(u32::try_from(start).ok()?);
        sequence.copy_from_slice(&own.to_be_bytes());
        let flags = segment.get_mut(l4 + 13)?;
        if !is_last {
            *flags &= !FIN_PSH;
        }
        if number > 0 {
            *flags &= !CWR;
        }
    }
    write_checksum(segment)
}

/// A big-endian 16-bit field.
fn put(frame: &mut [u8], field: Range<usize>, value: usize) -> Option<()> {
    let value = u16::try_from(value).ok()?;
    frame.get_mut(field)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TCP 10.0.0.1:1 -> 10.0.0.2:2, sequence 0xffff_fff0, CWR ACK PSH FIN.
    fn tcp(payload: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        let length = u16::try_from(40 + payload).unwrap().to_be_bytes();
        frame.extend([8, 0, 0x45, 0, length[0], length[1], 0xff, 0xff, 0x40, 0, 64]);
        frame.extend([6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, 0x99]);
        frame.extend([1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|n| n.to_le_bytes()[0]));
        frame
    }

    fn field(frame: &[u8], at: usize) -> u16 {
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    /// The checksum that is there is the one that belongs there.
    fn is_right(frame: &[u8]) -> bool {
        let mut again = frame.to_vec();
        write_checksum(&mut again).unwrap();
        again == frame
    }

    #[test]
    fn a_super_packet_of_tcp_becomes_segments_in_sequence() {
        let segments = on_the_wire(tcp(250), 100).unwrap();
        let lengths: Vec<usize> = segments.iter().map(Vec::len).collect();
        assert_eq!(lengths, [154, 154, 104]);
        let joined: Vec<u8> = segments.iter().flat_map(|s| s[54..].to_vec()).collect();
        assert_eq!(joined, &tcp(250)[54..]);
        let ids: Vec<u16> = segments.iter().map(|s| field(s, 18)).collect();
        assert_eq!(ids, [0xffff, 0, 1]);
        let sequences: Vec<u16> = segments.iter().map(|s| field(s, 40)).collect();
        assert_eq!(sequences, [0xfff0, 0x54, 0xb8]);
        let flags: Vec<u8> = segments.iter().map(|s| s[47]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19]);
        for segment in &segments {
            assert_eq!(usize::from(field(segment, 16)), segment.len() - 14);
            assert!(is_right(segment));
        }
    }

    #[test]
    fn one_of_udp_over_ipv6_becomes_datagrams() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, 17, 64]);
        frame.extend([0x20; 32]);
        frame.extend([0, 1, 0, 2, 0, 28, 0, 0]);
        frame.extend(1..=20);
        let datagrams = on_the_wire(frame, 8).unwrap();
        let carried: Vec<&[u8]> = datagrams.iter().map(|d| &d[62..]).collect();
        assert_eq!(carried[0], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(carried[2], [17, 18, 19, 20]);
        for datagram in &datagrams {
            assert_eq!(usize::from(field(datagram, 18)), datagram.len() - 54);
            assert_eq!(usize::from(field(datagram, 58)), datagram.len() - 54);
            assert!(is_right(datagram));
        }
    }

    #[test]
    fn what_is_no_super_packet_stays_one_frame() {
        let frame = tcp(100);
        assert_eq!(on_the_wire(frame.clone(), 0).unwrap(), [frame]);
        let ping = vec![0; 60];
        assert_eq!(on_the_wire(ping.clone(), 0).unwrap(), [ping]);
    }

    #[test]
    fn what_can_not_be_cut_is_told() {
        assert_eq!(cut(&[0; 60], 100), None);
        assert_eq!(cut(&tcp(100)[..100], 10), None, "it is cut off");
        let mut fragment = tcp(100);
        fragment[20] = 0x20;
        assert_eq!(cut(&fragment, 10), None);
        assert_eq!(cut(&tcp(100), 0), None);
    }
}
