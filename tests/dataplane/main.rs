//! The data plane on the real kernel: nodes are network namespaces, V is one too, reached through
//! taps that a pump serves as QEMU would.
//!
//! Needs root and the eBPF object; without them each test prints `SKIP name: reason`, or fails if
//! `KATAMARAN_REQUIRE` names what is missing (`root`, `bpf`).

mod copies;
mod cutover;
mod device;
mod drops;
mod lab;
mod lifecycle;
mod mtu;
mod neighbour;
mod netns;
mod pump;
mod require;
mod stream;
mod tap;
mod traffic;
mod wire;
