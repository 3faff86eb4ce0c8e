//! Volumes that two nodes have open at once: whether it is the same one, who else has it, and who may
//! write to it.
//!
//! A leaf module: it knows `/proc`, `/sys`, locks and ioctls, and nothing of QMP or the session. Its parts:
//!
//! | module | what |
//! |---|---|
//! | [`open`] | a volume that QEMU has open, opened a second time |
//! | [`mark`] | the migration lock, which proves that both sides have the same volume; the table of locked bytes |
//! | [`image_lock`] | QEMU's image locks: who may write |
//! | [`users`] | who else on this node could write |
//! | [`device`] | which block device it is, by what the device says of itself |
//! | [`reservation`] | persistent reservations: the device itself refuses writes |
//!
//! **Invariants.** Nothing here writes to a volume. Locks are OFD locks of our own open files: they die with
//! this process at the latest. What does not (a reservation) has an owner type whose `release` is the
//! normal end.

mod descriptors;
pub mod device;
mod error;
pub mod image_lock;
mod lock;
pub mod mark;
pub mod open;
pub mod reservation;
mod sys;
pub mod users;

pub use error::VolumeError;
pub use image_lock::ImageLocks;
pub use mark::Side;
pub use open::Volume;

/// The result of everything in this module.
pub type Result<T, E = VolumeError> = std::result::Result<T, E>;
