//! The data plane on the real kernel: nodes are network namespaces, V is one too, reached through
//! taps that a pump serves as QEMU would.
//!
//! Needs root and the eBPF object; without them each test prints `SKIP name: reason`, or fails if
//! `KATAMARAN_REQUIRE` names what is missing (`root`, `bpf`).
#![expect(clippy::unwrap_used, reason = "tests panic, helpers of tests too")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

mod account;
mod copies;
mod cutover;
mod device;
mod drops;
mod gre;
mod lab;
mod lifecycle;
mod mtu;
mod neighbour;
mod netns;
mod numbers;
mod pump;
mod require;
mod retained;
mod stream;
mod tap;
mod traffic;
mod wire;
