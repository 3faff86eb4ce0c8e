//! The only raw access to packets.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::addr_of_mut;

use aya_ebpf::bindings::{__sk_buff, bpf_tunnel_key};
use aya_ebpf::helpers::generated::{
    bpf_loop, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_load_bytes,
    bpf_skb_set_tunnel_key,
};
use aya_ebpf::programs::TcContext;
use katamaran_common::packet::{PacketRead, Step};

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

    /// Whether the frame's MAC is the device's: a flooding switch shows us others' frames as well.
    #[inline(always)]
    pub(crate) fn is_for_this_host(&self) -> bool {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).pkt_type == 0 }
    }

    #[inline(always)]
    pub(crate) fn has_vlan(&self) -> bool {
        // SAFETY: the kernel's own context.
        unsafe { (*self.context.skb.skb).vlan_present != 0 }
    }

    /// Reads a value as it stands in memory.
    #[inline(always)]
    pub(crate) fn load<T>(&self, offset: u32) -> Option<T> {
        self.context.load(offset as usize).ok()
    }

    /// Overwrites bytes with a value as it stands in memory; checksums are the caller's business.
    #[inline(always)]
    pub(crate) fn store<T>(&self, offset: u32, value: &T) -> Option<()> {
        self.context.store(offset as usize, value, 0).ok()
    }

    /// Copies `length` bytes of the packet from `offset` on to `target`.
    ///
    /// # Safety
    ///
    /// `target` must have room for `length` bytes, in a way that the verifier can see.
    #[inline(always)]
    pub(crate) unsafe fn copy_to(&self, offset: u32, target: *mut u8, length: u32) -> Option<()> {
        let skb = self.context.skb.skb.cast();
        // SAFETY: as the caller promises.
        let result = unsafe { bpf_skb_load_bytes(skb, offset, target.cast(), length) };
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

    /// Takes the kernel's route off the packet. A tunnel device whose path is too narrow for a packet would
    /// note that as the path MTU of its route (`skb_tunnel_check_pmtu()`, net/ipv4/ip_tunnel_core.c), and full
    /// packets to V would no longer be forwarded. The helper puts an empty tunnel description in its
    /// place, which a device with a fixed remote end does not look at.
    #[inline(always)]
    pub(crate) fn forget_route(&self) {
        // SAFETY: all fields are integers.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        let size = size_of::<bpf_tunnel_key>() as u32;
        // SAFETY: a key of this size.
        unsafe { bpf_skb_set_tunnel_key(self.context.skb.skb, &mut key, size, 0) };
    }

    /// In again at a device, as if it had just arrived there.
    #[inline(always)]
    pub(crate) fn redirect_ingress(&self, ifindex: u32) -> i32 {
        // SAFETY: takes no pointers.
        unsafe { bpf_redirect(ifindex, INGRESS) as i32 }
    }

    /// In at the other end of a veth, which is in another namespace. The mark stays.
    #[inline(always)]
    pub(crate) fn redirect_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: takes no pointers.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }

    /// Out through a device, with a new Ethernet header from the kernel's route and neighbour.
    #[inline(always)]
    pub(crate) fn redirect_neighbour(&self, ifindex: u32) -> i32 {
        // SAFETY: without parameters the kernel looks the next hop up itself.
        unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }
}

/// Hides from the compiler what it knows of a value.
///
/// It proves bounds in ways that the verifier can't follow and then leaves the checks out; behind this
/// it has to keep them.
#[inline(always)]
pub(crate) fn opaque(value: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: moves a register to itself. (Without any instruction two lines of debug information would
    // share one, which the kernel refuses.)
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value as u32
}

/// What `bpf_loop` hands to each turn.
struct Turns<'a, S> {
    skb: *mut __sk_buff,
    state: &'a mut S,
}

extern "C" fn turn<S: Step<Skb>>(_index: u64, turns: &mut Turns<'_, S>) -> u64 {
    let skb = Skb::new(TcContext::new(turns.skb));
    // 1 ends the loop.
    u64::from(!turns.state.step(&skb))
}

impl PacketRead for Skb {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.context.load(offset as usize).ok()
    }

    #[inline(always)]
    fn byte(&self, offset: u32) -> Option<u8> {
        self.context.load(offset as usize).ok()
    }

    #[inline(always)]
    fn half(&self, offset: u32) -> Option<u16> {
        self.context
            .load::<u16>(offset as usize)
            .ok()
            .map(u16::from_be)
    }

    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, times: u32, state: &mut S) {
        let mut turns = Turns {
            skb: self.context.skb.skb,
            state,
        };
        let callback = turn::<S> as *const () as *mut c_void;
        // SAFETY: the callback takes what it is given here, which outlives the call.
        unsafe { bpf_loop(times, callback, addr_of_mut!(turns).cast(), 0) };
    }
}
