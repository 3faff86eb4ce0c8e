//! TCP's and UDP's checksums (RFC 9293, RFC 768), and IPv4's (RFC 791).

use katamaran_common::packet::{Ip, protocol};

use super::{checksum_field, parse};

/// Writes the TCP or UDP checksum where it was left to the device: the kernel then has put the sum of the pseudo
/// header in its place (`CHECKSUM_PARTIAL`, include/linux/skbuff.h). Any other is left as it is, right or
/// wrong: a packet that was damaged on its way must not look whole. `None` when nothing was done.
pub(crate) fn complete_checksum(frame: &mut [u8]) -> Option<()> {
    let ip = parse(frame)?;
    let l4 = l4(frame, &ip)?;
    let stored = *l4.get(checksum_field(ip.protocol)?..)?.first_chunk()?;
    let partial = fold(pseudo_header(&ip, l4.len()));
    if u16::from_be_bytes(stored) != partial {
        return None;
    }
    write_checksum(frame)
}

/// Writes the TCP or UDP checksum, whatever is there.
pub(super) fn write_checksum(frame: &mut [u8]) -> Option<()> {
    let ip = parse(frame)?;
    let field = checksum_field(ip.protocol)?;
    let l4 = l4(frame, &ip)?;
    l4.get_mut(field..field + 2)?.copy_from_slice(&[0, 0]);
    let sum = match !fold(pseudo_header(&ip, l4.len()) + words(l4)) {
        // 0 stands for "none" there (RFC 768).
        0 if ip.protocol == protocol::UDP => 0xffff,
        sum => sum,
    };
    l4.get_mut(field..field + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Writes the checksum of an IPv4 header.
pub(super) fn write_header_checksum(header: &mut [u8]) -> Option<()> {
    header.get_mut(10..12)?.copy_from_slice(&[0, 0]);
    let sum = !fold(words(header));
    header.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// The L4 header and what it carries, of a packet that is no fragment.
fn l4<'a>(frame: &'a mut [u8], ip: &Ip) -> Option<&'a mut [u8]> {
    if ip.fragment != 0 {
        return None;
    }
    let start = usize::try_from(ip.l4_offset).ok()?;
    let end = start.checked_add(usize::try_from(ip.body()).ok()?)?;
    frame.get_mut(start..end)
}

fn pseudo_header(ip: &Ip, l4_length: usize) -> u64 {
    // Of a v4-mapped address only the last four bytes count.
    let skip = if ip.v4 { 12 } else { 0 };
    words(&ip.source.bytes()[skip..])
        + words(&ip.destination.bytes()[skip..])
        + u64::from(ip.protocol)
        + l4_length as u64
}

fn words(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10.0.0.1 -> 10.0.0.2, UDP 1 -> 2, "hi".
    fn frame(checksum: [u8; 2]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([
            8, 0, 0x45, 0, 0, 30, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend([0, 1, 0, 2, 0, 10, checksum[0], checksum[1], b'h', b'i']);
        frame
    }

    fn sum(frame: &mut [u8]) -> u16 {
        let ip = parse(frame).unwrap();
        let l4 = l4(frame, &ip).unwrap();
        fold(pseudo_header(&ip, l4.len()) + words(l4))
    }

    #[test]
    fn a_checksum_left_to_the_device_is_filled_in() {
        let ip = parse(&frame([0, 0])).unwrap();
        let mut frame = frame(fold(pseudo_header(&ip, 10)).to_be_bytes());
        complete_checksum(&mut frame).unwrap();
        assert_eq!(sum(&mut frame), 0xffff, "a right checksum sums to ones");
        let right = frame.clone();
        assert_eq!(complete_checksum(&mut frame), None, "it is there");
        assert_eq!(frame, right);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut frame = frame([0x12, 0x34]);
        assert_eq!(complete_checksum(&mut frame), None);
        assert_eq!(frame[40..42], [0x12, 0x34]);
    }

    #[test]
    fn udp_without_a_checksum_stays_without() {
        let mut frame = frame([0, 0]);
        assert_eq!(complete_checksum(&mut frame), None);
        assert_eq!(frame[40..42], [0, 0]);
    }
}
