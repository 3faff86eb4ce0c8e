//! `katamaran trace` against the real kernel: drops of every kind that can be made here, each on its own
//! stage of network namespaces, and what the command says of them.
//!
//! Each kind is made twice: without its cause, and then nothing may be told, and with it.
#![expect(clippy::unwrap_used, reason = "tests panic, helpers of tests too")]

mod command;
mod filter;
mod forward;
mod frame;
mod hooks;
mod local;
mod queue;
mod stage;
mod tap;
mod tracer;
mod tunnel;
mod xdp;

/// Returns from the test where it can't run.
macro_rules! require {
    () => {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        use katamaran_tests::need::{Need, met};
        if !met(&test, &[Need::Root, Need::Bpf]) {
            return;
        }
    };
}
pub(crate) use require;
