//! All maps, and the only code that touches their memory.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use katamaran_common::counter::{Counter, Digest, Stamp};
use katamaran_common::layout::{
    COPY_SLOTS, Config, CopySlot, Count, DropKey, MAX_ADDRESSES, MAX_DROP_KEYS, Sequence,
};
use katamaran_common::packet::Address;
use katamaran_common::sequence::jump;
use katamaran_common::trace::{DropEvent, Lost, TraceOffsets};

use crate::atomic::{compare_exchange, fetch_add};

/// How often a CPU looks again when others were faster.
const MAX_TURNS: u32 = 16;

#[map]
static KTM_CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static KTM_MODE: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static KTM_COPYING: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static KTM_ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static KTM_COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Counter::COUNT, 0);
#[map]
static KTM_DIGESTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Digest::COUNT, 0);
#[map]
static KTM_STAMPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Stamp::COUNT, 0);
#[map]
static KTM_NEXT_NUMBER: Array<u64> = Array::with_max_entries(2, 0);
#[map]
static KTM_SEQUENCE: Array<Sequence> = Array::with_max_entries(2, 0);
#[map]
static KTM_DROPS: HashMap<DropKey, u64> = HashMap::with_max_entries(MAX_DROP_KEYS, 0);
#[map]
static KTM_COPIES: Array<CopySlot> = Array::with_max_entries(COPY_SLOTS, 0);
#[map]
static KTM_COPY_NUMBER: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static KTM_RETAINING: Array<u32> = Array::with_max_entries(1, 0);
/// As small as can be: who redirects makes it larger.
#[map]
static KTM_RETAINED: RingBuf = RingBuf::with_byte_size(4096, 0);

#[map]
static KTM_TRACE: Array<TraceOffsets> = Array::with_max_entries(1, 0);
/// As small as can be: who reads it makes it larger.
#[map]
static KTM_EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
static KTM_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Lost::COUNT, 0);

#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    let pointer = KTM_CONFIG.get_ptr(0)?;
    // SAFETY: an array element lives as long as the program, and is written before it is attached.
    Some(unsafe { &*pointer })
}

#[inline(always)]
pub(crate) fn mode() -> u32 {
    // SAFETY: a valid element; volatile because user space writes it, one aligned word at a time.
    KTM_MODE
        .get_ptr(0)
        .map_or(0, |pointer| unsafe { pointer.read_volatile() })
}

#[inline(always)]
pub(crate) fn copying() -> bool {
    // SAFETY: as for the mode.
    KTM_COPYING
        .get_ptr(0)
        .is_some_and(|pointer| unsafe { pointer.read_volatile() } != 0)
}

#[inline(always)]
pub(crate) fn retaining() -> bool {
    // SAFETY: as for the mode.
    KTM_RETAINING
        .get_ptr(0)
        .is_some_and(|pointer| unsafe { pointer.read_volatile() } != 0)
}

/// Room for one packet in the ring of retained ones. Every byte that is read later has to be written.
#[inline(always)]
pub(crate) fn retained<T: 'static>() -> Option<RingBufEntry<T>> {
    KTM_RETAINED.reserve(0)
}

#[inline(always)]
pub(crate) fn is_address(address: &Address) -> bool {
    KTM_ADDRESSES.get_ptr(address).is_some()
}

#[inline(always)]
pub(crate) fn count(counter: Counter, count: &Count) {
    if let Some(pointer) = KTM_COUNTS.get_ptr_mut(counter.index()) {
        // SAFETY: this CPU's own element. A TC program and a tracepoint that interrupts it never
        // share a counter.
        unsafe {
            (*pointer).skbs += count.skbs;
            (*pointer).packets += count.packets;
            (*pointer).bytes += count.bytes;
        }
    }
}

#[inline(always)]
pub(crate) fn digest(digest: Digest, contribution: u64) {
    if let Some(pointer) = KTM_DIGESTS.get_ptr_mut(digest.index()) {
        // SAFETY: this CPU's own element.
        unsafe { *pointer = (*pointer).wrapping_add(contribution) }
    }
}

#[inline(always)]
pub(crate) fn stamp(stamp: Stamp) {
    if let Some(pointer) = KTM_STAMPS.get_ptr_mut(stamp.index()) {
        // SAFETY: this CPU's own element.
        unsafe { *pointer = bpf_ktime_get_ns() }
    }
}

/// Sets a stamp that has not been set.
#[inline(always)]
pub(crate) fn stamp_first(stamp: Stamp) {
    if let Some(pointer) = KTM_STAMPS.get_ptr_mut(stamp.index()) {
        // SAFETY: this CPU's own element.
        unsafe {
            if *pointer == 0 {
                *pointer = bpf_ktime_get_ns();
            }
        }
    }
}

/// Takes `packets` numbers of the family's sequence and returns the first.
#[inline(always)]
pub(crate) fn take_numbers(family: u32, packets: u32) -> u64 {
    KTM_NEXT_NUMBER.get_ptr_mut(family).map_or(0, |pointer| {
        // SAFETY: a valid, aligned element that every CPU changes atomically only.
        unsafe { fetch_add(pointer, u64::from(packets)) }
    })
}

/// Notes `packets` packets numbered from `number` on, of which only `bits` bits are known.
#[inline(always)]
pub(crate) fn note_numbers(family: u32, number: u32, packets: u32, bits: u32) {
    let Some(sequence) = KTM_SEQUENCE.get_ptr_mut(family) else {
        return;
    };
    let packets = u64::from(packets);
    // SAFETY: a valid, aligned element that every CPU changes atomically only.
    unsafe {
        fetch_add(&raw mut (*sequence).seen, packets);
        let mut next = (&raw const (*sequence).next).read_volatile();
        // Whoever finds it changed looks again from there. After so many turns others are ahead by as many, and what
        // they skip is what this one would have filled.
        for _ in 0..MAX_TURNS {
            let Some(skipped) = jump(next, number, bits) else {
                fetch_add(&raw mut (*sequence).late, packets);
                return;
            };
            let found = compare_exchange(&raw mut (*sequence).next, next, next + skipped + packets);
            if found == next {
                if skipped > 0 {
                    fetch_add(&raw mut (*sequence).skipped, skipped);
                }
                return;
            }
            next = found;
        }
    }
}

#[inline(always)]
pub(crate) fn count_drop(key: &DropKey, packets: u64) {
    if KTM_DROPS.get_ptr_mut(key).is_none() {
        // BPF_NOEXIST: whoever comes second finds the element below.
        let _ = KTM_DROPS.insert(key, 0, 1);
    }
    match KTM_DROPS.get_ptr_mut(key) {
        // SAFETY: a valid element; nobody deletes from this map.
        Some(pointer) => {
            unsafe { fetch_add(pointer, packets) };
        }
        // The table is full.
        None => count_lost(Lost::Totals, packets),
    }
}

#[inline(always)]
pub(crate) fn count_lost(what: Lost, packets: u64) {
    if let Some(pointer) = KTM_LOST.get_ptr_mut(what.index()) {
        // SAFETY: this CPU's own element; the kernel does not start a tracing program again on a CPU that
        // is in it.
        unsafe { *pointer += packets }
    }
}

#[inline(always)]
pub(crate) fn trace_offsets() -> Option<&'static TraceOffsets> {
    let pointer = KTM_TRACE.get_ptr(0)?;
    // SAFETY: an array element lives as long as the program, and is written before it is attached.
    Some(unsafe { &*pointer })
}

/// Room for one event in the ring. Every byte of it has to be written.
#[inline(always)]
pub(crate) fn event() -> Option<RingBufEntry<DropEvent>> {
    KTM_EVENTS.reserve(0)
}

/// The next slot of the copy ring, and its number.
#[inline(always)]
pub(crate) fn copy_slot() -> Option<(*mut CopySlot, u64)> {
    let pointer = KTM_COPY_NUMBER.get_ptr_mut(0)?;
    // SAFETY: a valid, aligned element that every CPU changes atomically only.
    let number = unsafe { fetch_add(pointer, 1) } + 1;
    let slot = KTM_COPIES.get_ptr_mut((number % u64::from(COPY_SLOTS)) as u32)?;
    Some((slot, number))
}
