//! katamaran: live migration of a Kata Containers VM with proven zero packet loss.

pub mod cli;
pub mod config;
pub mod conntrack;
pub mod control;
pub mod deadline;
pub mod discover;
pub mod ebpf;
pub mod journal;
pub mod metrics;
pub mod migrate;
pub mod nbd;
pub mod net;
mod open_enum;
mod pidfd;
pub mod preflight;
mod prompt_writer;
pub mod qmp;
pub mod relay;
pub mod role;
pub mod session_id;
pub mod shutdown;
pub mod stderr;
pub mod stream;
pub mod telemetry;
pub mod trace;
pub mod volume;
mod wall_clock;
