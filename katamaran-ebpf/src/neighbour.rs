//! Answers for V while it is away.
//!
//! The node asks for V's MAC from time to time. While V's packets go to D nobody would answer: the
//! kernel would mark V unreachable, drop its packets before our hook, and the redirect would starve.
//! So the request is turned into its own answer and sent back in.

use katamaran_common::layout::Config;
use katamaran_common::packet::{ETHERNET_LENGTH, Ip, PacketRead as _, mapped, protocol};

use crate::context::Skb;
use crate::maps;

const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Solicited, override.
const ADVERTISEMENT_FLAGS: u8 = 0x60;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// Turns an ARP request for V into the reply; `None` (and nothing changed) if it is not one.
#[inline(always)]
pub(crate) fn answer_arp(skb: &Skb, config: &Config) -> Option<()> {
    let request: [u8; 28] = skb.read(ETHERNET_LENGTH)?;
    // Ethernet, IPv4, lengths 6 and 4, request.
    if request[0..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let sender = [request[14], request[15], request[16], request[17]];
    let target = [request[24], request[25], request[26], request[27]];
    if sender == target || !maps::is_address(&mapped(target)) {
        return None;
    }
    let mut reply = [0u8; 42];
    reply[0..6].copy_from_slice(&request[8..14]);
    reply[6..12].copy_from_slice(&config.vm_mac);
    reply[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply[22..28].copy_from_slice(&config.vm_mac);
    reply[28..32].copy_from_slice(&target);
    reply[32..38].copy_from_slice(&request[8..14]);
    reply[38..42].copy_from_slice(&sender);
    skb.store(0, &reply)
}

#[inline(always)]
pub(crate) fn is_icmpv6(ip: &Ip) -> bool {
    !ip.v4 && ip.protocol == protocol::ICMPV6 && ip.fragment == 0
}

/// Turns a neighbour solicitation for V into the advertisement; `None` if it is not one.
#[inline(always)]
pub(crate) fn answer_solicitation(skb: &Skb, config: &Config, ip: &Ip) -> Option<()> {
    let [kind] = skb.read::<1>(ip.l4_offset)?;
    if kind != NEIGHBOUR_SOLICITATION || ip.l4_offset != ETHERNET_LENGTH + 40 {
        return None;
    }
    let target: [u8; 16] = skb.read(ip.l4_offset + 8)?;
    // Duplicate address detection comes from the unspecified address: that is V's own business.
    if !maps::is_address(&target) || ip.source == [0; 16] {
        return None;
    }
    let asker: [u8; 6] = skb.read(6)?;
    // With the link-layer option (32 bytes) the answer has one too; a bare probe gets a bare answer.
    let with_option = ip.body() == 32;
    if !with_option && ip.body() != 24 {
        return None;
    }
    let mut reply = [0u8; 32];
    reply[0] = NEIGHBOUR_ADVERTISEMENT;
    reply[4] = ADVERTISEMENT_FLAGS;
    reply[8..24].copy_from_slice(&target);
    if with_option {
        reply[24] = TARGET_LINK_LAYER_ADDRESS;
        reply[25] = 1;
        reply[26..32].copy_from_slice(&config.vm_mac);
    }
    let checksum = checksum(&target, &ip.source, &reply, ip.body()).to_be_bytes();
    reply[2] = checksum[0];
    reply[3] = checksum[1];
    if with_option {
        skb.store(ip.l4_offset, &reply)?;
    } else {
        let bare: [u8; 24] = *reply.first_chunk()?;
        skb.store(ip.l4_offset, &bare)?;
    }
    skb.store(ip.offset + 8, &target)?;
    skb.store(ip.offset + 24, &ip.source)?;
    skb.store(0, &asker)?;
    skb.store(6, &config.vm_mac)
}

/// The ICMPv6 checksum; unused bytes of `message` are 0 and don't matter.
#[inline(always)]
fn checksum(source: &[u8; 16], destination: &[u8; 16], message: &[u8; 32], length: u32) -> u16 {
    let mut sum = length + u32::from(protocol::ICMPV6);
    let mut at = 0;
    while at < 16 {
        sum += u32::from(u16::from_be_bytes([source[at], source[at + 1]]));
        sum += u32::from(u16::from_be_bytes([destination[at], destination[at + 1]]));
        at += 2;
    }
    at = 0;
    while at < 32 {
        sum += u32::from(u16::from_be_bytes([message[at], message[at + 1]]));
        at += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
