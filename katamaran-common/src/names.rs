//! Names of programs and maps in the object.

/// TC egress towards V (or ingress of its pod) on the source: counts, copies, redirects.
pub const PROGRAM_SOURCE: &str = "ktm_source";
/// TC ingress of the node's end of a pod's veth on the source: sends on to D what `ktm_source` sent back out of the pod.
pub const PROGRAM_LIFT: &str = "ktm_lift";
/// TC ingress on the destination: takes V's packets out of the tunnel and hands them to the tap.
pub const PROGRAM_DELIVER: &str = "ktm_deliver";
/// TC egress towards V (or ingress of its pod) on the destination: counts what came by tunnel and what came directly.
pub const PROGRAM_TAP: &str = "ktm_tap";
/// Raw tracepoint `net_dev_start_xmit`: what a driver was really handed.
pub const PROGRAM_XMIT: &str = "ktm_xmit";
/// Raw tracepoint `kfree_skb`: what the kernel dropped, where and why.
pub const PROGRAM_DROP: &str = "ktm_drop";
/// The same tracepoint: tells of each packet that was dropped.
pub const PROGRAM_TRACE: &str = "ktm_trace";
/// The same where the tracepoint also names the receiving socket (Linux 6.11).
pub const PROGRAM_TRACE_SOCKET: &str = "ktm_trace_sk";

/// One [`Config`](crate::layout::Config).
pub const MAP_CONFIG: &str = "KTM_CONFIG";
/// One [`Mode`](crate::layout::Mode).
pub const MAP_MODE: &str = "KTM_MODE";
/// One `u32`: not 0 while the copy ring records.
pub const MAP_COPYING: &str = "KTM_COPYING";
/// V's addresses, 16 bytes each (v4-mapped) -> `u32` 1.
pub const MAP_ADDRESSES: &str = "KTM_ADDRESSES";
/// Per CPU, by [`Counter`](crate::counter::Counter): [`Count`](crate::layout::Count).
pub const MAP_COUNTS: &str = "KTM_COUNTS";
/// Per CPU, by [`Digest`](crate::counter::Digest): `u64`.
pub const MAP_DIGESTS: &str = "KTM_DIGESTS";
/// Per CPU, by [`Stamp`](crate::counter::Stamp): `u64` nanoseconds of `CLOCK_MONOTONIC`.
pub const MAP_STAMPS: &str = "KTM_STAMPS";
/// By family (0: v4, 1: v6): the next outer number, `u64`.
pub const MAP_NEXT_NUMBER: &str = "KTM_NEXT_NUMBER";
/// By family: [`Sequence`](crate::layout::Sequence), what the outer numbers tell.
pub const MAP_SEQUENCE: &str = "KTM_SEQUENCE";
/// [`DropKey`](crate::layout::DropKey) -> `u64` packets.
pub const MAP_DROPS: &str = "KTM_DROPS";
/// [`CopySlot`](crate::layout::CopySlot)s, a ring.
pub const MAP_COPIES: &str = "KTM_COPIES";
/// One `u64`: frames written to the copy ring so far.
pub const MAP_COPY_NUMBER: &str = "KTM_COPY_NUMBER";
/// One `u32`: not 0 while what is redirected is retained.
pub const MAP_RETAINING: &str = "KTM_RETAINING";
/// A ring of packets that were redirected, each behind its [`Retained`](crate::layout::Retained).
pub const MAP_RETAINED: &str = "KTM_RETAINED";
/// One [`TraceOffsets`](crate::trace::TraceOffsets).
pub const MAP_TRACE: &str = "KTM_TRACE";
/// A ring of [`DropEvent`](crate::trace::DropEvent)s.
pub const MAP_EVENTS: &str = "KTM_EVENTS";
/// Per CPU, by [`Lost`](crate::trace::Lost): `u64` packets.
pub const MAP_LOST: &str = "KTM_LOST";
