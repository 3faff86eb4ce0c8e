//! Keys and values of the maps.
//!
//! Rules: `repr(C)`, fixed-width integers and byte arrays only, explicit padding, sizes asserted.

use core::mem::size_of;

use crate::packet::Address;

/// What `ktm_source` does with V's packets. Written by user space, read once per packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Passes everything and counts nothing.
    Off = 0,
    /// Counts and passes.
    Count = 1,
    /// Counts and sends to D.
    Redirect = 2,
}

/// Flag values of [`Config::encap`].
pub mod encap {
    /// The program writes the outer IP header and leaves through the underlay device.
    pub const IP: u32 = 0;
    /// Frames leave unchanged through a tunnel device.
    pub const DEVICE: u32 = 1;
    /// As [`IP`], with a GRE header behind the outer IP header.
    pub const GRE: u32 = 2;
}

/// The largest number of addresses a VM may have.
pub const MAX_ADDRESSES: u32 = 1024;
/// Slots of the copy ring.
pub const COPY_SLOTS: u32 = 1024;
/// The largest part of a frame that is copied.
pub const COPY_BYTES: usize = 2048;
/// Distinct keys that are told apart.
pub const MAX_DROP_KEYS: u32 = 512;

/// Everything the programs need to know, written before they are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// The hook: where neighbour answers are sent back.
    pub hook_ifindex: u32,
    /// Not 0: the hook is at the ingress of the pod's end of a veth. At S the pod's device that redirected packets go
    /// back to the node through; `ktm_lift` takes them on from its other end. D hands packets to the pod's end at once.
    pub through_pod: u32,
    /// S: where redirected packets leave. Underlay device (IP) or tunnel device (DEVICE).
    pub out_ifindex: u32,
    /// S: tunnel device for packets that do not fit the path encapsulated; 0: there is none.
    pub oversize_ifindex: u32,
    /// S: largest outer IP packet that the path carries, bytes.
    pub path_mtu: u32,
    /// [`encap`]; at D whether it is [`encap::GRE`] that packets arrive in.
    pub encap: u32,
    /// D: the device that V's packets are handed to.
    pub deliver_ifindex: u32,
    /// D: the tunnel device whose frames are V's as they come; 0: there is none.
    pub frames_ifindex: u32,
    /// D: the mark that tells tunnelled packets from direct ones on the tap.
    pub mark: u32,
    /// Inode number of the network namespace of the hooks.
    pub netns_inum: u32,
    /// Inode number of the network namespace of the tap.
    pub tap_netns_inum: u32,
    /// The tap, in its namespace.
    pub tap_ifindex: u32,
    /// V's MAC, then the MAC that D's frames to V come from: the start of an Ethernet header.
    pub deliver_header: [u8; 12],
    /// This node's tunnel end, v4-mapped.
    pub local4: Address,
    /// The other node's, v4-mapped.
    pub remote4: Address,
    /// This node's tunnel end, v6.
    pub local6: Address,
    /// The other node's, v6.
    pub remote6: Address,
    /// Which of v4 (bit 0) and v6 (bit 1) have tunnel ends.
    pub families: u32,
    /// Where the kernel keeps what the tracepoints read.
    pub offsets: KernelOffsets,
}

impl Config {
    /// V's MAC.
    #[must_use]
    #[inline(always)]
    pub fn vm_mac(&self) -> [u8; 6] {
        let header = &self.deliver_header;
        [
            header[0], header[1], header[2], header[3], header[4], header[5],
        ]
    }
}

/// Byte offsets inside kernel structures, from the running kernel's BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelOffsets {
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.end`
    pub skb_end: u32,
    /// `sk_buff.len`
    pub skb_len: u32,
    /// `sk_buff.dev`
    pub skb_dev: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff.network_header`
    pub skb_network_header: u32,
    /// `skb_shared_info.gso_size`
    pub shinfo_gso_size: u32,
    /// `skb_shared_info.gso_segs`
    pub shinfo_gso_segs: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.nd_net.net`
    pub dev_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `sk_buff.data`
    pub skb_data: u32,
    /// `sk_buff.mac_header`
    pub skb_mac_header: u32,
}

/// What passed one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Kernel buffers; one may hold many packets.
    pub skbs: u64,
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes of IP packets on the wire (without link headers).
    pub bytes: u64,
}

/// What the outer numbers of one family tell at D. The source numbers from 0; here they are unwrapped to 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sequence {
    /// One above the highest number seen: how many were sent, as far as is known here.
    pub next: u64,
    /// Packets seen.
    pub seen: u64,
    /// Packets skipped when a number jumped ahead (late ones make up for it).
    pub skipped: u64,
    /// Packets that came below the highest number: late, or a duplicate.
    pub late: u64,
}

/// Where a drop happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct DropKey {
    /// Kernel address of the caller.
    pub location: u64,
    /// `enum skb_drop_reason`, with the subsystem in the upper bits.
    pub reason: u32,
    /// The packet's device; 0: it had none that could be told.
    pub ifindex: u32,
    /// Inode number of the network namespace; 0: it could not be told.
    pub netns_inum: u32,
    /// The [`Tunnel`](crate::trace::Tunnel) that V's packet was in, with [`FROM_VM`].
    pub way: u32,
}

/// Set in [`DropKey::way`] for a packet that V sent.
pub const FROM_VM: u32 = 0x100;

/// One frame of the copy ring.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CopySlot {
    /// Running number, from 1; 0: never used. Written last.
    pub number: u64,
    /// Length of the frame, bytes.
    pub length: u32,
    /// How much of it is in `bytes`.
    pub captured: u32,
    /// The skb's segment size; not 0 for a super-packet.
    pub gso_size: u32,
    /// Padding.
    pub _pad: u32,
    /// The frame, from its Ethernet header.
    pub bytes: [u8; COPY_BYTES],
}

/// What stands in front of each packet in the ring of retained ones; the packet follows from its IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Retained {
    /// Length of the IP packet, bytes.
    pub length: u32,
    /// The skb's segment size; not 0 for a super-packet.
    pub gso_size: u32,
    /// The Ethernet header it came with.
    pub ethernet: [u8; 14],
    /// Padding.
    pub _pad: [u8; 2],
}

const _: () = assert!(size_of::<Retained>() == 24);
const _: () = assert!(size_of::<KernelOffsets>() == 52);
const _: () = assert!(size_of::<Config>() == 12 * 4 + 12 + 4 * 16 + 4 + 52);
const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<Count>() == 24);
const _: () = assert!(size_of::<Sequence>() == 32);
const _: () = assert!(size_of::<DropKey>() == 24);
const _: () = assert!(size_of::<CopySlot>() == 24 + COPY_BYTES);

#[cfg(feature = "user")]
mod pod {
    use super::{Address, Config, CopySlot, Count, DropKey, Sequence};

    macro_rules! pod {
        ($($name:ty),+) => {
            $(
                // SAFETY: repr(C), only integers and byte arrays, no implicit padding (sizes are
                // asserted above), so every byte is initialised and every bit pattern is valid.
                unsafe impl aya::Pod for $name {}
            )+
        };
    }
    pod!(Address, Config, CopySlot, Count, DropKey, Sequence);
}
