//! The only raw access to packets.

use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_redirect_neigh, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use katamaran_common::packet::PacketRead;

/// `BPF_ADJ_ROOM_MAC`: room is made or taken right behind the MAC header.
const ROOM_MAC: u32 = 1;
/// `BPF_F_INGRESS`
const INGRESS: u64 = 1;

/// A packet at a TC hook; offset 0 is its Ethernet header.
pub(crate) struct Skb {
    context: TcContext,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(context: TcContext) -> Self {
        Self { context }
    }

    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        // The field holds the 16 bits as they stand in the packet.
        u16::from_be(self.context.skb.protocol() as u16)
    }

    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).gso_size }
    }

    #[inline(always)]
    pub(crate) fn gso_segments(&self) -> u32 {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).gso_segs }
    }

    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).mark }
    }

    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        self.context.set_mark(mark);
    }

    /// The device that the hook is on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    #[inline(always)]
    pub(crate) fn has_vlan(&self) -> bool {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).vlan_present != 0 }
    }

    /// Overwrites bytes; checksums are the caller's business.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: the helper checks offset and length against the packet.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.context.skb.skb.cast(),
                offset,
                bytes.as_ptr().cast(),
                N as u32,
                0,
            )
        };
        (result == 0).then_some(())
    }

    /// Copies `length` bytes from the start of the packet to `target`.
    ///
    /// # Safety
    ///
    /// `target` must have room for `length` bytes, in a way that the verifier can see.
    #[inline(always)]
    pub(crate) unsafe fn copy_to(&self, target: *mut u8, length: u32) -> Option<()> {
        // SAFETY: as the caller promises.
        let result = unsafe {
            bpf_skb_load_bytes(self.context.skb.skb.cast(), 0, target.cast(), length)
        };
        (result == 0).then_some(())
    }

    /// Makes (or, negative, takes) room behind the Ethernet header.
    #[inline(always)]
    pub(crate) fn adjust_room(&self, bytes: i32, flags: u64) -> Option<()> {
        self.context.adjust_room(bytes, ROOM_MAC, flags).ok()
    }

    /// Out through a device, as a frame.
    #[inline(always)]
    pub(crate) fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: takes no pointers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// In again at a device, as if it had just arrived there.
    #[inline(always)]
    pub(crate) fn redirect_ingress(&self, ifindex: u32) -> i32 {
        // SAFETY: takes no pointers.
        unsafe { bpf_redirect(ifindex, INGRESS) as i32 }
    }

    /// Out through a device, with a new Ethernet header from the kernel's route and neighbour.
    #[inline(always)]
    pub(crate) fn redirect_neighbour(&self, ifindex: u32) -> i32 {
        // SAFETY: without parameters the kernel looks the next hop up itself.
        unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }
}

impl PacketRead for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.context.load(offset as usize).ok()
    }
}
