//! Frames from the copy ring, made whole.

use aya::Ebpf;
use aya::maps::{Array, MapData};
use katamaran_common::layout::{COPY_SLOTS, CopySlot};
use katamaran_common::names;
use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, parse_ip, protocol,
};

use super::error::EbpfError;
use super::object;

/// A frame that was passed to the tap while the copy ring was on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedFrame {
    /// Running number since arming, from 1.
    pub number: u64,
    /// Length of the frame as it was, bytes.
    pub length: u32,
    /// Segment size; not 0 for a super-packet, which is not one frame.
    pub gso_size: u32,
    /// The frame from its Ethernet header, or as much as fits 2048 bytes. Its TCP or UDP checksum is
    /// right: what was left to the hardware is filled in.
    pub bytes: Vec<u8>,
}

impl CopiedFrame {
    /// Whether `bytes` is the one whole frame that a guest can be given.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.gso_size == 0 && usize::try_from(self.length).is_ok_and(|n| n == self.bytes.len())
    }
}

pub(super) struct CopyMap {
    copies: Array<MapData, CopySlot>,
}

impl CopyMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            copies: object::map(ebpf, names::MAP_COPIES)?,
        })
    }

    /// What the ring holds, oldest first.
    pub(super) fn read(&self) -> Result<Vec<CopiedFrame>, EbpfError> {
        let mut frames = Vec::new();
        for index in 0..COPY_SLOTS {
            let slot = self
                .copies
                .get(&index, 0)
                .map_err(EbpfError::map("read", names::MAP_COPIES))?;
            if slot.number == 0 {
                continue;
            }
            let captured = usize::try_from(slot.captured)
                .unwrap_or(0)
                .min(slot.bytes.len());
            let mut frame = CopiedFrame {
                number: slot.number,
                length: slot.length,
                gso_size: slot.gso_size,
                bytes: slot.bytes[..captured].to_vec(),
            };
            if frame.is_whole() {
                complete_checksum(&mut frame.bytes);
            }
            frames.push(frame);
        }
        frames.sort_by_key(|frame| frame.number);
        Ok(frames)
    }
}

/// Writes the TCP or UDP checksum: locally sent packets leave it to the device, and the copy is taken
/// before the device.
fn complete_checksum(frame: &mut [u8]) -> Option<()> {
    let ethertype = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    if ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let room = u32::try_from(frame.len())
        .ok()?
        .checked_sub(ETHERNET_LENGTH)?;
    let ip = parse_ip(&&*frame, ethertype, ETHERNET_LENGTH, room)?;
    if ip.fragment != 0 {
        return None;
    }
    let field = match ip.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return None,
    };
    let start = usize::try_from(ip.l4_offset).ok()?;
    let end = start.checked_add(usize::try_from(ip.body()).ok()?)?;
    let l4 = frame.get_mut(start..end)?;
    let stored = l4.get_mut(field..field + 2)?;
    if ip.protocol == protocol::UDP && ip.v4 && *stored == [0, 0] {
        return None; // sent without one
    }
    stored.copy_from_slice(&[0, 0]);
    let sum = match checksum(&ip, l4) {
        0 if ip.protocol == protocol::UDP => 0xffff,
        sum => sum,
    };
    l4.get_mut(field..field + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some(())
}

fn checksum(ip: &Ip, l4: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
            .sum()
    };
    // Of a v4-mapped address only the last four bytes count.
    let skip = if ip.v4 { 12 } else { 0 };
    let mut sum =
        words(&ip.source.bytes()[skip..]) + words(&ip.destination.bytes()[skip..]) + words(l4);
    sum += u64::from(ip.protocol) + l4.len() as u64;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_left_to_the_device_is_filled_in() {
        // 10.0.0.1 -> 10.0.0.2, UDP 1 -> 2, "hi"; only the pseudo header's sum is in place.
        let mut frame = vec![0; 12];
        frame.extend([
            8, 0, 0x45, 0, 0, 30, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend([0, 1, 0, 2, 0, 10, 0x12, 0x34, b'h', b'i']);
        complete_checksum(&mut frame).unwrap();
        let ip = parse_ip(&&frame[..], ETHERTYPE_IPV4, ETHERNET_LENGTH, 30).unwrap();
        assert_eq!(
            checksum(&ip, &frame[34..]),
            0,
            "a right checksum sums to nothing"
        );
    }

    #[test]
    fn udp_without_a_checksum_stays_without() {
        let mut frame = vec![0; 12];
        frame.extend([
            8, 0, 0x45, 0, 0, 30, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend([0, 1, 0, 2, 0, 10, 0, 0, b'h', b'i']);
        assert_eq!(complete_checksum(&mut frame), None);
        assert_eq!(frame[40..42], [0, 0]);
    }
}
