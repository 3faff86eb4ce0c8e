//! The lab: two nodes, a router and a client as network namespaces, real QEMU guests between them,
//! numbered traffic through them, and a check that nothing stays behind.
//!
//! | module | what |
//! |---|---|
//! | [`lab`] | namespaces, guests, processes; everything is gone when the [`lab::Lab`] is dropped |
//! | [`traffic`] | UDP and TCP through the guest's echo, with a full account of every packet |
//! | [`run`] | whole migrations with traffic on: by katamaran, and by what it is compared with |
//! | [`show`] | what people look at: demo, comparison, soak |
//! | [`standin`] | what runs in place of QEMU where a real guest would be too slow |
//! | [`leak`] | what kernel objects there are, before and after |
//! | [`need`] | what a test needs of the machine, and how it is skipped |

pub mod bpf;
pub mod lab;
pub mod leak;
pub mod need;
pub mod run;
pub mod show;
pub mod standin;
pub mod traffic;
