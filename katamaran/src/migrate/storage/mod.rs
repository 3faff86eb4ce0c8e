//! What both roles know of local drives: how they are found and compared, how the jobs that mirror them
//! are judged, and what goes wrong with them. Decisions are pure functions here; the roles do the I/O.

pub(crate) mod checksum;
pub mod drive;
mod error;
pub(crate) mod export;
pub mod job;
mod pace;
mod progress;

pub use drive::DriveDescription;
pub use error::{Mirrored, Side, StorageError};
pub(crate) use pace::Pace;
pub use progress::DriveProgress;
pub(crate) use progress::Meter;

/// What our jobs, nodes and exports in QEMU are called, so that a later run knows them.
pub(crate) const PREFIX: &str = "katamaran-";

/// An id that QEMU takes, made of a drive's name: letters, digits, `-`, `.` and `_`.
pub(crate) fn qemu_id(drive: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') {
            c
        } else {
            '-'
        }
    };
    format!("{PREFIX}{}", drive.chars().map(plain).collect::<String>())
}

/// An equal share of `limit` for each of `active` jobs; 0 means no limit, as QEMU has it.
#[must_use]
pub fn share(limit: Option<u64>, active: usize) -> u64 {
    match (limit, u64::try_from(active)) {
        (Some(limit), Ok(active @ 1..)) => (limit / active).max(1),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_qemu_would_not_take_are_made_plain() {
        assert_eq!(
            qemu_id("drive-virtio-disk0"),
            "katamaran-drive-virtio-disk0"
        );
        assert_eq!(qemu_id("#block1 x"), "katamaran--block1-x");
    }

    #[test]
    fn the_limit_is_shared_by_those_that_still_copy() {
        assert_eq!(share(None, 3), 0);
        assert_eq!(share(Some(90), 3), 30);
        assert_eq!(share(Some(90), 1), 90);
        assert_eq!(share(Some(1), 3), 1);
        assert_eq!(share(Some(90), 0), 0);
    }
}
