//! katamaran: live migration of a Kata Containers VM with proven zero packet loss.

pub mod control;
pub mod deadline;
pub mod ebpf;
pub mod net;
mod open_enum;
mod prompt_writer;
pub mod qmp;
pub mod relay;
pub mod session_id;
pub mod stream;
