//! Reading the kernel's own structures, at offsets that user space took from its BTF.
//!
//! Every read goes through `bpf_probe_read_kernel`: a wrong offset yields garbage, never a fault.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use katamaran_common::layout::KernelOffsets;
use katamaran_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ip, PacketRead, parse_ip,
};
use katamaran_common::trace::NAME_BYTES;

/// A `struct sk_buff` somewhere in the kernel.
#[derive(Clone, Copy)]
pub(crate) struct KernelSkb {
    address: u64,
    head: u64,
}

/// A `struct net_device`.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub ifindex: u32,
    pub netns_inum: u32,
}

/// Reads a field of a structure.
#[inline(always)]
pub(crate) fn load<T>(base: u64, offset: u32) -> Option<T> {
    let pointer = base.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(pointer) }.ok()
}

/// Reads a name; all zeros where there is none to read.
///
/// # Safety
///
/// `target` must be valid, in a way that the verifier can see.
#[inline(always)]
pub(crate) unsafe fn load_name(target: *mut [u8; NAME_BYTES], base: u64, offset: u32) {
    let pointer = base.wrapping_add(u64::from(offset)) as *const core::ffi::c_void;
    // SAFETY: as the caller promises. The helper checks the address, and writes zeros when it fails.
    unsafe { generated::bpf_probe_read_kernel(target.cast(), NAME_BYTES as u32, pointer) };
}

/// Reads which device at `address` is.
#[inline(always)]
pub(crate) fn device(offsets: &KernelOffsets, address: u64) -> Option<Device> {
    if address == 0 {
        return None;
    }
    let net: u64 = load(address, offsets.dev_net)?;
    Some(Device {
        ifindex: load(address, offsets.dev_ifindex)?,
        netns_inum: load(net, offsets.net_inum)?,
    })
}

impl KernelSkb {
    #[inline(always)]
    pub(crate) fn new(offsets: &KernelOffsets, address: u64) -> Option<Self> {
        Some(Self {
            address,
            head: load(address, offsets.skb_head)?,
        })
    }

    #[inline(always)]
    pub(crate) fn device_address(&self, offsets: &KernelOffsets) -> Option<u64> {
        load(self.address, offsets.skb_dev)
    }

    #[inline(always)]
    pub(crate) fn ethertype(&self, offsets: &KernelOffsets) -> Option<u16> {
        load::<u16>(self.address, offsets.skb_protocol).map(u16::from_be)
    }

    #[inline(always)]
    pub(crate) fn length(&self, offsets: &KernelOffsets) -> Option<u32> {
        load(self.address, offsets.skb_len)
    }

    /// (segment size, segments)
    #[inline(always)]
    pub(crate) fn gso(&self, offsets: &KernelOffsets) -> Option<(u32, u32)> {
        let end: u32 = load(self.address, offsets.skb_end)?;
        let shared = self.head + u64::from(end);
        let size: u16 = load(shared, offsets.shinfo_gso_size)?;
        let segments: u16 = load(shared, offsets.shinfo_gso_segs)?;
        Some((u32::from(size), u32::from(segments)))
    }

    /// The IP header, with offsets relative to itself. What precedes `data` counts as present.
    #[inline(always)]
    pub(crate) fn ip(&self, offsets: &KernelOffsets) -> Option<(Ip, KernelBytes)> {
        let (bytes, ethertype) = self.network(offsets)?;
        let data: u64 = load(self.address, offsets.skb_data)?;
        let before = bytes.base.wrapping_sub(data) as u32;
        let room = self.length(offsets)?.wrapping_sub(before);
        let ip = parse_ip(&bytes, ethertype, 0, room)?;
        Some((ip, bytes))
    }

    /// Where the IP header is, and of which kind. Before the kernel has looked at a frame (XDP, a tap's
    /// sender, VLAN) only the Ethernet header says so.
    #[inline(always)]
    fn network(&self, offsets: &KernelOffsets) -> Option<(KernelBytes, u16)> {
        let header: u16 = load(self.address, offsets.skb_network_header)?;
        let ethertype = self.ethertype(offsets)?;
        let bytes = KernelBytes {
            base: self.head + u64::from(header),
        };
        let version = bytes.byte(0)? >> 4;
        if (ethertype == ETHERTYPE_IPV4 && version == 4)
            || (ethertype == ETHERTYPE_IPV6 && version == 6)
        {
            return Some((bytes, ethertype));
        }
        let header: u16 = load(self.address, offsets.skb_mac_header)?;
        if header == u16::MAX {
            return None;
        }
        let frame = KernelBytes {
            base: self.head + u64::from(header),
        };
        let ethertype = frame.half(ETHERNET_LENGTH - 2)?;
        let (length, ethertype) = if ethertype == ETHERTYPE_VLAN {
            (ETHERNET_LENGTH + 4, frame.half(ETHERNET_LENGTH + 2)?)
        } else {
            (ETHERNET_LENGTH, ethertype)
        };
        let base = frame.base + u64::from(length);
        Some((KernelBytes { base }, ethertype))
    }

    /// Reads one of its fields.
    #[inline(always)]
    pub(crate) fn field<T>(&self, offset: u32) -> Option<T> {
        load(self.address, offset)
    }
}

/// Bytes in kernel memory.
#[derive(Clone, Copy)]
pub(crate) struct KernelBytes {
    base: u64,
}

impl PacketRead for KernelBytes {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        load(self.base, offset)
    }

    #[inline(always)]
    fn byte(&self, offset: u32) -> Option<u8> {
        load(self.base, offset)
    }

    #[inline(always)]
    fn half(&self, offset: u32) -> Option<u16> {
        load::<u16>(self.base, offset).map(u16::from_be)
    }
}
