//! Shared volumes against the real kernel: locks of several processes, and devices with reservations.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod nfs;
mod process;
mod reservation;
