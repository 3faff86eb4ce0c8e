//! katamaran: live migration of a Kata Containers VM with proven zero packet loss.

pub mod control;
pub mod discover;
pub mod ebpf;
pub mod net;
pub mod qmp;
pub mod session_id;
