//! Shared volumes: disks that both nodes have open while the VM moves, and that must have one writer.
//!
//! ```text
//!   source                                        destination
//!     lock, look for others, register a key
//!     Attach ────────────────────────────────────▶ the source's lock and key are on what our QEMU has open;
//!     ◀──────────────────────────────────────────  lock, look for others, register a key
//!     theirs are on what our QEMU has open
//!     reserve; the time begins to run
//!     ...
//!                                          Block: our QEMU has no right to write yet
//!     our QEMU has given up its right to write
//!     COMMIT ════════════════════════════════════▶ the source's key is preempted, the VM runs
//!     our QEMU ends; give up lock and key          give up lock and key
//! ```
//!
//! Nothing of it concerns a VM without a writable disk. What a path leads to is never taken for granted; what can't be
//! proven is refused, unless the user vouches for it.

mod aside;
mod destination;
#[cfg(test)]
mod device_tests;
mod drives;
mod held;
mod place;
pub mod report;
mod source;
pub mod wire;

pub(crate) use destination::{attach as attach_destination, must_not_write, run_fenced};
pub(crate) use held::Held;
pub(crate) use source::{attach as attach_source, must_have_let_go};
