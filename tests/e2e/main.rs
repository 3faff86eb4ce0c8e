//! Real migrations: two nodes, QEMU guests, traffic through them, and a look at what is left.
//!
//! Each test boots guests of its own; run them one at a time (`--test-threads=1`), for all of them
//! want the whole machine.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod behind;
mod cancel;
mod conntrack;
mod crash;
mod disk_baseline;
mod disk_failure;
mod disk_faults;
mod disk_writes;
mod disks;
mod early;
mod failure;
mod impatient;
mod ledger;
mod metrics;
mod neighbours;
mod nics;
mod perfect;
mod preflight;
mod preflight_kernel;
mod refusal;
mod rules;
mod shared;
mod support;
mod tcx;
mod terminal;
mod versions;
mod wiring;
