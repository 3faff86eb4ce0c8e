//! Answers for V while it is away.
//!
//! The node asks for V's MAC from time to time. While V's packets go to D nobody would answer: the
//! kernel would mark V unreachable, drop its packets before our hook, and the redirect would starve.
//! So the request is turned into its own answer and sent back in.

use katamaran_common::layout::Config;
use katamaran_common::packet::{Address, ETHERNET_LENGTH, Ip, PacketRead as _, protocol};

use crate::context::Skb;
use crate::maps;

const NEIGHBOUR_SOLICITATION: u8 = 135;
const ADVERTISEMENT: u32 = 136;
/// Solicited, override.
const ADVERTISEMENT_FLAGS: u32 = 0x6000_0000;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// Ethernet, IPv4, lengths 6 and 4.
const ARP_KIND: [u32; 2] = [0x0001_0800, 0x0604_0001];
const ARP_REPLY: u16 = 2;

/// Turns an ARP request for V into the reply; `None` (and nothing changed) if it is not one.
#[inline(always)]
pub(crate) fn answer_arp(skb: &Skb, config: &Config) -> Option<()> {
    let kind = skb.words::<2>(ETHERNET_LENGTH)?;
    if u32::from_be(kind[0]) != ARP_KIND[0] || u32::from_be(kind[1]) != ARP_KIND[1] {
        return None;
    }
    // 8 sender's MAC, 14 sender's address, 18 target's MAC, 24 target's address
    let asker: [u16; 3] = skb.load(ETHERNET_LENGTH + 8)?;
    let [sender] = skb.words::<1>(ETHERNET_LENGTH + 14)?;
    let [target] = skb.words::<1>(ETHERNET_LENGTH + 24)?;
    if sender == target || !maps::is_address(&Address::mapped(target)) {
        return None;
    }
    skb.store(ETHERNET_LENGTH + 6, &ARP_REPLY.to_be())?;
    skb.store(ETHERNET_LENGTH + 8, &config.vm_mac())?;
    skb.store(ETHERNET_LENGTH + 14, &target)?;
    skb.store(ETHERNET_LENGTH + 18, &asker)?;
    skb.store(ETHERNET_LENGTH + 24, &sender)?;
    skb.store(0, &asker)?;
    skb.store(6, &config.vm_mac())
}

#[inline(always)]
pub(crate) fn is_icmpv6(ip: &Ip) -> bool {
    !ip.v4 && ip.protocol == protocol::ICMPV6 && ip.fragment == 0
}

/// Turns a neighbour solicitation for V into the advertisement; `None` if it is not one.
#[inline(always)]
pub(crate) fn answer_solicitation(skb: &Skb, config: &Config, ip: &Ip) -> Option<()> {
    if skb.byte(ip.l4_offset)? != NEIGHBOUR_SOLICITATION || ip.l4_offset != ETHERNET_LENGTH + 40 {
        return None;
    }
    let target = Address {
        words: skb.words(ip.l4_offset + 8)?,
    };
    // Duplicate address detection comes from the unspecified address: that is V's own business.
    if !maps::is_address(&target) || ip.source == Address::UNSPECIFIED {
        return None;
    }
    // With the link-layer option (32 bytes) the answer has one too; a bare probe gets a bare answer.
    let with_option = ip.body() == 32;
    if !with_option && ip.body() != 24 {
        return None;
    }
    let asker: [u16; 3] = skb.load(6)?;
    let mac = config.vm_mac();
    // Everything but the addresses and the option, in host order.
    let mut sum = (ADVERTISEMENT << 8) + (ADVERTISEMENT_FLAGS >> 16);
    sum += ip.body() + u32::from(protocol::ICMPV6);
    // The target stands in the message and is the sender.
    sum += 2 * halves(&target) + halves(&ip.source);
    if with_option {
        let option = [
            TARGET_LINK_LAYER_ADDRESS,
            1,
            mac[0],
            mac[1],
            mac[2],
            mac[3],
            mac[4],
            mac[5],
        ];
        sum += u32::from(u16::from_be_bytes([option[0], option[1]]));
        sum += u32::from(u16::from_be_bytes([option[2], option[3]]));
        sum += u32::from(u16::from_be_bytes([option[4], option[5]]));
        sum += u32::from(u16::from_be_bytes([option[6], option[7]]));
        skb.store(ip.l4_offset + 24, &option)?;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let start = [
        (ADVERTISEMENT << 24 | (!sum & 0xffff)).to_be(),
        ADVERTISEMENT_FLAGS.to_be(),
    ];
    skb.store(ip.l4_offset, &start)?;
    skb.store(ip.offset + 8, &target)?;
    skb.store(ip.offset + 24, &ip.source)?;
    skb.store(0, &asker)?;
    skb.store(6, &mac)
}

/// The sum of an address's 16-bit halves.
#[inline(always)]
fn halves(address: &Address) -> u32 {
    let words = &address.words;
    half_sum(words[0]) + half_sum(words[1]) + half_sum(words[2]) + half_sum(words[3])
}

#[inline(always)]
fn half_sum(word: u32) -> u32 {
    let word = u32::from_be(word);
    (word >> 16) + (word & 0xffff)
}
