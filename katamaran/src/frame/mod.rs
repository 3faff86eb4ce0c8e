//! Frames as bytes: what the kernel leaves to a device that a copy of a frame does not pass.

mod checksum;
mod segment;

use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, parse_ip, protocol,
};

pub(crate) use checksum::complete_checksum;
pub(crate) use segment::on_the_wire;

/// The header of a frame's IP packet, with what its body is; `None` where it is another frame, or damaged.
fn parse(frame: &[u8]) -> Option<Ip> {
    let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    if ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let room = u32::try_from(frame.len())
        .ok()?
        .checked_sub(ETHERNET_LENGTH)?;
    parse_ip(&frame, ethertype, ETHERNET_LENGTH, room)
}

/// Where the checksum is in the header of a protocol that a device can sum up.
fn checksum_field(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        _ => None,
    }
}
