//! The command as scripts see it: what it says, where it says it, and the status it exits with.
//!
//! Needs neither root nor QEMU. What is wrong on a command line must be told before anything is
//! touched: each of these tests lends the command a QMP socket and sees that nobody connects to it.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod help;
mod metrics;
mod monitor;
mod preflight;
mod report;
mod support;
mod usage;
