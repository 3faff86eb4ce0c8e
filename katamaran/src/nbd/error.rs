//! What can go wrong between us and an NBD server.

use std::io;
use std::path::PathBuf;

/// A drive could not be opened or read over NBD.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Nobody listens.
    #[error("connect to the NBD server at {}", path.display())]
    Connect { path: PathBuf, source: io::Error },

    /// It speaks, but not fixed newstyle NBD.
    #[error("not a fixed newstyle NBD server: {what}")]
    NotNbd { what: &'static str },

    /// It does not export this.
    #[error("the NBD server does not give export {export}: {reason}")]
    Refused { export: String, reason: String },

    /// The server could not read the drive.
    #[error("read {length} bytes at {offset}: NBD error {code}")]
    Read {
        offset: u64,
        length: u32,
        /// An errno of the protocol: 5 is EIO.
        code: u32,
    },

    /// A reply that belongs to no request.
    #[error("the NBD server answered something else than it was asked")]
    OutOfStep,

    /// The connection broke.
    #[error("connection to the NBD server")]
    Io {
        #[from]
        source: io::Error,
    },
}
