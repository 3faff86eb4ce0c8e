//! `ktm_trace`: tells of each of V's packets that the kernel drops, wherever and in whichever direction.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use katamaran_common::layout::{DropKey, FROM_VM, KernelOffsets};
use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_FRAME, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, L4, PacketRead, parse_ip,
    parse_l4, protocol,
};
use katamaran_common::trace::{Lost, TraceOffsets, Tunnel};

use crate::kernel::{KernelBytes, KernelSkb, device, load, load_name};
use crate::{maps, trace};

/// The lowest inode number of a network namespace: the first one's is fixed, a little below where the
/// kernel starts to count (include/linux/proc_ns.h, fs/proc/generic.c).
const FIRST_NETNS_INUM: u32 = 0xefff_ff00;
/// UDP's header, then VXLAN's.
const UDP_LENGTH: u32 = 8;
const VXLAN_LENGTH: u32 = 8;
/// "The VNI is valid", in the first byte of VXLAN's header.
const VXLAN_VNI: u8 = 0x08;

/// Where it happened.
struct Place {
    ifindex: u32,
    netns_inum: u32,
    /// The `net_device`; 0: none that can be read.
    address: u64,
}

/// `socket` is who should have received the packet, 0 where the kernel does not say.
#[inline(always)]
pub(crate) fn dropped(skb: u64, location: u64, reason: u32, socket: u64) -> Option<()> {
    let offsets = &maps::config()?.offsets;
    let more = maps::trace_offsets()?;
    let skb = KernelSkb::new(offsets, skb)?;
    let (outer, bytes) = skb.ip(offsets)?;
    let (ip, tunnel) = if is_of_vm(&outer) {
        (outer, Tunnel::None)
    } else {
        inner(&outer, &bytes)?
    };
    let l4 = parse_l4(&bytes, &ip);
    let place = place(&skb, offsets, more, socket);
    let from_vm = !maps::is_address(&ip.destination);
    let key = DropKey {
        location,
        reason,
        ifindex: place.ifindex,
        netns_inum: place.netns_inum,
        way: tunnel as u32 | if from_vm { FROM_VM } else { 0 },
    };
    let packets = trace::segments(&skb, offsets, &l4);
    maps::count_drop(&key, u64::from(packets));
    if tell(&skb, more, &key, place.address, &ip, &l4, packets).is_none() {
        maps::count_lost(Lost::Events, u64::from(packets));
    }
    Some(())
}

#[inline(always)]
fn is_of_vm(ip: &Ip) -> bool {
    maps::is_address(&ip.destination) || maps::is_address(&ip.source)
}

/// V's packet inside a tunnel's outer header, whoever's tunnel it is.
#[inline(always)]
fn inner(outer: &Ip, bytes: &KernelBytes) -> Option<(Ip, Tunnel)> {
    if outer.fragment != 0 {
        return None;
    }
    let at = outer.l4_offset;
    let (tunnel, ethertype, at) = if outer.protocol == protocol::IPIP {
        (Tunnel::Ip, ETHERTYPE_IPV4, at)
    } else if outer.protocol == protocol::IPV6 {
        (Tunnel::Ip, ETHERTYPE_IPV6, at)
    } else if outer.protocol == protocol::GRE {
        let flags = bytes.half(at)?;
        let options =
            u32::from(flags >> 15) + u32::from((flags >> 13) & 1) + u32::from((flags >> 12) & 1);
        (Tunnel::Gre, bytes.half(at + 2)?, at + 4 + 4 * options)
    } else if outer.protocol == protocol::UDP && bytes.byte(at + UDP_LENGTH)? == VXLAN_VNI {
        (
            Tunnel::Vxlan,
            ETHERTYPE_FRAME,
            at + UDP_LENGTH + VXLAN_LENGTH,
        )
    } else {
        return None;
    };
    let (ethertype, at) = if ethertype == ETHERTYPE_FRAME {
        (bytes.half(at + ETHERNET_LENGTH - 2)?, at + ETHERNET_LENGTH)
    } else {
        (ethertype, at)
    };
    let room = outer.length.saturating_sub(at);
    let ip = parse_ip(bytes, ethertype, at, room)?;
    is_of_vm(&ip).then_some((ip, tunnel))
}

/// A packet on its way through a device names it. One in a socket's queue no longer does (the field is used
/// for something else then); the index of the device it came in by, and the socket, are left.
#[inline(always)]
fn place(skb: &KernelSkb, offsets: &KernelOffsets, more: &TraceOffsets, socket: u64) -> Place {
    let address = skb.device_address(offsets).unwrap_or(0);
    if let Some(found) = device(offsets, address)
        && found.netns_inum >= FIRST_NETNS_INUM
    {
        return Place {
            ifindex: found.ifindex,
            netns_inum: found.netns_inum,
            address,
        };
    }
    let net = if socket == 0 {
        0
    } else {
        load::<u64>(socket, more.sock_net).unwrap_or(0)
    };
    Place {
        ifindex: skb.field(more.skb_iif).unwrap_or(0),
        netns_inum: load(net, offsets.net_inum).unwrap_or(0),
        address: 0,
    }
}

/// Puts the event into the ring; nothing when that is full.
#[inline(always)]
fn tell(
    skb: &KernelSkb,
    more: &TraceOffsets,
    key: &DropKey,
    device: u64,
    ip: &Ip,
    l4: &L4,
    packets: u32,
) -> Option<()> {
    let mut entry = maps::event()?;
    let event = entry.as_mut_ptr();
    let qdisc = qdisc(skb, more, device).unwrap_or(0);
    // SAFETY: room for one event, of which every field is written.
    unsafe {
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).key = *key;
        (*event).source = ip.source;
        (*event).destination = ip.destination;
        (*event).ports = l4.ports;
        (*event).length = ip.length;
        (*event).packets = packets;
        (*event).protocol = u32::from(ip.protocol);
        (*event).fragment = u32::from(ip.fragment);
        (*event).tcp_flags = (l4.control >> 16) & 0xff;
        (*event).qdisc_handle = load(qdisc, more.qdisc_handle).unwrap_or(0);
        (*event)._pad = 0;
        load_name(addr_of_mut!((*event).device), device, more.dev_name);
        let operations = load(qdisc, more.qdisc_ops).unwrap_or(0);
        load_name(addr_of_mut!((*event).qdisc), operations, more.qdisc_ops_id);
    }
    entry.submit(0);
    Some(())
}

/// The `Qdisc` that a device has for this packet.
#[inline(always)]
fn qdisc(skb: &KernelSkb, more: &TraceOffsets, device: u64) -> Option<u64> {
    let queues: u64 = load(device, more.dev_tx)?;
    let count: u32 = load(device, more.dev_tx_queues)?;
    let chosen = u32::from(skb.field::<u16>(more.skb_queue_mapping)?);
    // Of a received packet it is the number of another queue.
    let chosen = if chosen < count { chosen } else { 0 };
    let queue = queues.wrapping_add(u64::from(chosen) * u64::from(more.queue_size));
    load(queue, more.queue_qdisc)
}
