//! Reads a drive that QEMU exports over NBD on a unix socket.
//!
//! ```text
//! server -> NBDMAGIC, IHAVEOPT, flags           fixed newstyle handshake
//!        <- flags, IHAVEOPT, GO (export)
//!        -> INFO (size, flags) .., ACK
//!        <- READ (cookie, offset, length)       transmission, simple replies
//!        -> error or data
//!        <- DISC
//! ```
//!
//! That much of the protocol and no more: no writes, no structured replies, one request at a time. The one
//! crate that speaks it (`nbd`) is not async and calls itself early; libnbd's bindings need its C library.
//!
//! Deadlines are the caller's: dropping a future leaves the connection in the middle of a message, so a
//! reader that was given up has to be dropped, too.

mod error;
mod reader;
mod wire;

#[cfg(test)]
mod tests;

pub use error::NbdError;
pub use reader::Reader;
