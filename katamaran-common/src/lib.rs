//! Layouts and packet logic shared by user space and eBPF.
//!
//! Byte order: addresses, ports and MACs are byte arrays in network order; every integer is in host
//! order. Counters are `u64`. Nothing here allocates, and nothing here is `unsafe` but the `Pod`
//! marks that user space needs (feature `user`).
#![no_std]

#[cfg(test)]
extern crate std;

pub mod counter;
pub mod digest;
pub mod layout;
pub mod names;
pub mod packet;
pub mod segments;
pub mod sequence;
pub mod trace;
