//! The TC and tracing programs of katamaran.
//!
//! | program | hook | what it does |
//! |---|---|---|
//! | `ktm_source` | TC egress towards V, on S | counts; from the flip on sends V's packets to D |
//! | `ktm_deliver` | TC ingress from the tunnel, on D | takes V's packets out, hands them to the tap |
//! | `ktm_tap` | TC egress towards V, on D | counts what came by tunnel and what came directly |
//! | `ktm_xmit` | raw tracepoint `net_dev_start_xmit` | counts what the tap's driver was handed |
//! | `ktm_drop` | raw tracepoint `kfree_skb` | counts V's packets that the kernel dropped |
//! | `ktm_trace`, `ktm_trace_sk` | the same | tells of each of them, in both directions, everywhere |
//!
//! **Fail open**: on any doubt a packet is passed on as if we were not there, and counted as such.
//! No program ever drops.
//!
//! All but the tables is inlined into one function per program. The stack limit is 512 bytes; the
//! largest user is the parsed packet (about 100 bytes) plus one header being written (42).
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod copy;
#[cfg(target_arch = "bpf")]
mod deliver;
#[cfg(target_arch = "bpf")]
mod encapsulate;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod neighbour;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod retain;
#[cfg(target_arch = "bpf")]
mod source;
#[cfg(target_arch = "bpf")]
mod tap;
#[cfg(target_arch = "bpf")]
mod trace;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
