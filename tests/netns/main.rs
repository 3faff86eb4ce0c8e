//! `katamaran::net`, `katamaran::discover` and streams of `katamaran::relay` on the real kernel, in network namespaces of their own.
//!
//! Needs root. Without it each test prints `SKIP name: reason`, unless `KATAMARAN_REQUIRE` contains
//! `root`, which turns the skip into a failure. The namespaces have no names: they vanish with the
//! last descriptor, also when a test panics or is killed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests panic rather than return errors, and print what they skip and measure"
)]

mod conntrack;
mod conntrack_scale;
mod detour;
mod discover;
mod handle;
mod inject;
mod link;
mod qdisc;
mod qemu;
mod queue;
mod route;
mod scratch;
mod silence;
mod support;
mod tap_ring;
mod two_nodes;
mod vxlan;
