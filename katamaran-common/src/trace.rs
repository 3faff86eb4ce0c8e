//! What `ktm_trace` tells of each packet that the kernel drops.

use core::mem::size_of;

use crate::layout::DropKey;
use crate::packet::Address;

/// The outer header that V's packet still had, or had already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tunnel {
    /// None.
    None = 0,
    /// An IP header: IPIP, IP6IP6, or one family in the other.
    Ip = 1,
    /// IP and GRE.
    Gre = 2,
    /// IP, UDP and VXLAN.
    Vxlan = 3,
}

/// Bytes of a device's or qdisc's name, filled up with zeros.
pub const NAME_BYTES: usize = 16;

/// One dropped packet, as it goes through the ring buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DropEvent {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Where and why.
    pub key: DropKey,
    /// V's packet, without any tunnel's header: its source, v4-mapped.
    pub source: Address,
    /// Its destination, v4-mapped.
    pub destination: Address,
    /// Both ports as they stand in the packet; 0 where there are none.
    pub ports: u32,
    /// Length of the IP packet; of a super-packet, before it is cut.
    pub length: u32,
    /// How many packets on the wire it is.
    pub packets: u32,
    /// The L4 protocol.
    pub protocol: u32,
    /// Fragment offset and "more fragments"; 0 for a whole packet.
    pub fragment: u32,
    /// TCP's flags.
    pub tcp_flags: u32,
    /// Handle of the queueing discipline that the device has for this packet; 0: the kernel's own, or none.
    pub qdisc_handle: u32,
    /// Padding.
    pub _pad: u32,
    /// The device's name; empty where it could not be told.
    pub device: [u8; NAME_BYTES],
    /// The kind of that queueing discipline.
    pub qdisc: [u8; NAME_BYTES],
}

/// What else `ktm_trace` has to find, beside [`KernelOffsets`](crate::layout::KernelOffsets).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceOffsets {
    /// `sk_buff.skb_iif`
    pub skb_iif: u32,
    /// `sk_buff.queue_mapping`
    pub skb_queue_mapping: u32,
    /// `net_device.name`
    pub dev_name: u32,
    /// `net_device._tx`
    pub dev_tx: u32,
    /// `net_device.num_tx_queues`
    pub dev_tx_queues: u32,
    /// `sizeof(struct netdev_queue)`
    pub queue_size: u32,
    /// `netdev_queue.qdisc`
    pub queue_qdisc: u32,
    /// `Qdisc.handle`
    pub qdisc_handle: u32,
    /// `Qdisc.ops`
    pub qdisc_ops: u32,
    /// `Qdisc_ops.id`
    pub qdisc_ops_id: u32,
    /// `sock.__sk_common.skc_net`
    pub sock_net: u32,
}

/// What could not be told, by its slot in the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lost {
    /// Packets that are in the totals, but for whose event the ring had no room.
    Events = 0,
    /// Packets that are not in the totals: there were too many places and reasons.
    Totals = 1,
}

impl Lost {
    /// How many there are: the length of the array.
    pub const COUNT: u32 = 2;

    /// The slot in the array.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

const _: () = assert!(size_of::<DropEvent>() == 8 + 24 + 2 * 16 + 8 * 4 + 2 * NAME_BYTES);
const _: () = assert!(size_of::<TraceOffsets>() == 11 * 4);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers and byte arrays, no implicit padding (sizes are asserted above), so
    // every byte is initialised and every bit pattern is valid.
    unsafe impl aya::Pod for super::TraceOffsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DropEvent {}
}
