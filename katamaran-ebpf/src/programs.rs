//! The entry points.

use aya_ebpf::macros::{classifier, raw_tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TcContext};

use crate::context::Skb;
use crate::{deliver, event, source, tap, trace};

/// "Go on": the next program, then the classic filters, then the device.
///
/// `TC_ACT_OK` would end the chain and so switch off whatever a CNI has attached behind us.
pub(crate) const PASS: i32 = -1;
/// `TC_ACT_SHOT`
pub(crate) const DROP: i32 = 2;

#[classifier]
pub(crate) fn ktm_source(context: TcContext) -> i32 {
    source::run(&Skb::new(context)).unwrap_or(PASS)
}

#[classifier]
pub(crate) fn ktm_lift(context: TcContext) -> i32 {
    source::lift(&Skb::new(context)).unwrap_or(PASS)
}

#[classifier]
pub(crate) fn ktm_deliver(context: TcContext) -> i32 {
    deliver::run(&Skb::new(context)).unwrap_or(PASS)
}

#[classifier]
pub(crate) fn ktm_tap(context: TcContext) -> i32 {
    tap::run(&Skb::new(context));
    PASS
}

#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub(crate) fn ktm_xmit(context: RawTracePointContext) -> i32 {
    trace::transmitted(context.arg(0), context.arg(1));
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn ktm_drop(context: RawTracePointContext) -> i32 {
    trace::dropped(context.arg(0), context.arg(1), context.arg(2));
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn ktm_trace(context: RawTracePointContext) -> i32 {
    event::dropped(context.arg(0), context.arg(1), context.arg(2), 0);
    0
}

/// The kernel lets no program attach that reads more arguments than there are.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn ktm_trace_sk(context: RawTracePointContext) -> i32 {
    event::dropped(
        context.arg(0),
        context.arg(1),
        context.arg(2),
        context.arg(3),
    );
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets only GPL-compatible programs read kernel memory and its clock.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
