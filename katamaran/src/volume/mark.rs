//! katamaran's own locks on a volume: the migration lock, which is also the proof that both nodes have
//! the same volume open.
//!
//! Bytes of a volume that are locked, never read or written; all but QEMU's lie far behind any volume's end:
//!
//! | bytes | by | means |
//! |---|---|---|
//! | 100 + *p* | QEMU | it uses permission *p* (0 consistent read, 1 write, 2 write unchanged, 3 resize) |
//! | 200 + *p* | QEMU | nobody else may use permission *p* |
//! | 0x6a00_0000_0000_0000 + *s* | destination's katamaran | it takes part in session *s* |
//! | 0x6b00_0000_0000_0000 + *s* | source's katamaran | the migration lock: session *s* migrates the volume |
//!
//! *s* is the low 56 bits of the random session id. A path proves nothing about which volume it is; but the
//! other side can only find exactly that one byte locked, out of 2^56, if it is the same file and its locks
//! are shared. A session that finds another byte of the range locked is the second one, and knows whose
//! the first one is.

use super::lock::{self, Range};
use super::open::Volume;
use super::{Result, VolumeError, users};

const SESSION_BITS: u32 = 56;

/// Which side of a migration sets a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that runs the VM.
    Source,
    /// The one that will.
    Destination,
}

impl Side {
    fn base(self) -> u64 {
        match self {
            Self::Source => 0x6b << SESSION_BITS,
            Self::Destination => 0x6a << SESSION_BITS,
        }
    }

    /// All bytes that any session can mark.
    fn range(self) -> Range {
        Range {
            start: self.base(),
            length: 1 << SESSION_BITS,
        }
    }

    fn byte(self, session: u64) -> u64 {
        self.base() | (session & ((1 << SESSION_BITS) - 1))
    }
}

impl Volume {
    /// Marks the volume for this session and side, until the volume is dropped.
    ///
    /// Two that come at the same moment may both see the other, and then neither has it; never both.
    ///
    /// # Errors
    /// Another session has marked it ([`VolumeError::Migrating`]), or its file system takes no locks.
    pub fn mark(&self, side: Side, session: u64) -> Result<()> {
        let byte = Range::byte(side.byte(session));
        lock::hold(&self.file, byte).map_err(VolumeError::lock("lock a byte of", &self.path))?;
        let taken = self.first_mark(side);
        if !matches!(taken, Ok(None)) {
            self.unlock(byte);
        }
        match taken? {
            None => Ok(()),
            Some(other) => Err(self.not_ours(side, other)),
        }
    }

    /// Whether the other side has marked the same volume for this session.
    ///
    /// # Errors
    /// Somebody else has marked or locked it, or its file system takes no locks.
    pub fn is_marked(&self, side: Side, session: u64) -> Result<bool> {
        let expected = Range::byte(side.byte(session));
        match self.first_mark(side)? {
            None => Ok(false),
            Some(found) if found == expected => Ok(true),
            Some(other) => Err(self.not_ours(side, other)),
        }
    }

    /// A mark of this side that is not this volume's own.
    fn first_mark(&self, side: Side) -> Result<Option<Range>> {
        lock::held_by_others(&self.file, side.range())
            .map_err(VolumeError::lock("ask for locks of", &self.path))
    }

    fn not_ours(&self, side: Side, found: Range) -> VolumeError {
        if found.length != 1 || !side.range().contains(found.start) {
            return VolumeError::ForeignLock {
                path: self.path.clone(),
                what: format!("bytes {:#x} and following", found.start),
            };
        }
        VolumeError::Migrating {
            path: self.path.clone(),
            session: format!("{:014x}", found.start & ((1 << SESSION_BITS) - 1)),
            holder: users::holder_of(self.inode, found.start),
        }
    }

    pub(super) fn unlock(&self, range: Range) {
        if let Err(error) = lock::release(&self.file, range) {
            // It goes with the open file in any case.
            tracing::debug!(path = %self.path.display(), %error, "a lock was not released");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;

    const SESSION: u64 = 0xfe12_3456_789a_bcde;
    const OTHER: u64 = 0x0011_1111_1111_1111;

    /// A volume as both nodes see it: two open files.
    fn both(path: &Path) -> [Volume; 2] {
        let pid = i32::try_from(std::process::id()).unwrap();
        [(); 2].map(|()| Volume::open(pid, path).unwrap())
    }

    #[test]
    fn each_side_sees_the_others_mark_on_the_same_volume_only() {
        let dir = tempfile::tempdir().unwrap();
        let (path, twin) = (dir.path().join("image"), dir.path().join("twin"));
        let _open = [&path, &twin].map(|path| File::create(path).unwrap());
        let [source, destination] = both(&path);
        let [_, elsewhere] = both(&twin);
        source.mark(Side::Source, SESSION).unwrap();
        destination.mark(Side::Destination, SESSION).unwrap();
        elsewhere.mark(Side::Destination, SESSION).unwrap();
        assert!(destination.is_marked(Side::Source, SESSION).unwrap());
        assert!(source.is_marked(Side::Destination, SESSION).unwrap());
        assert!(!elsewhere.is_marked(Side::Source, SESSION).unwrap());
        drop(destination);
        assert!(!source.is_marked(Side::Destination, SESSION).unwrap());
    }

    #[test]
    fn a_second_migration_is_refused_and_told_which_one_has_it_and_who_runs_that() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [first, second] = both(image.path());
        first.mark(Side::Source, SESSION).unwrap();
        let error = second.mark(Side::Source, OTHER).unwrap_err().to_string();
        assert!(error.contains("..123456789abcde"), "{error}");
        let this = format!("process {}", std::process::id());
        assert!(error.contains(&this), "{error}");
        drop(first);
        second.mark(Side::Source, OTHER).unwrap();
    }

    #[test]
    fn a_refused_mark_leaves_no_lock() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [first, second] = both(image.path());
        first.mark(Side::Destination, SESSION).unwrap();
        second.mark(Side::Destination, OTHER).unwrap_err();
        let [third, _] = both(image.path());
        assert!(third.is_marked(Side::Destination, SESSION).unwrap());
        first.unlock(Side::Destination.range());
        assert!(!third.is_marked(Side::Destination, SESSION).unwrap());
    }

    #[test]
    fn a_lock_over_everything_is_no_proof() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [volume, _] = both(image.path());
        let all = File::open(image.path()).unwrap();
        let everything = Range {
            start: 0,
            length: 0,
        };
        lock::hold(&all, everything).unwrap();
        let error = volume.is_marked(Side::Source, SESSION).unwrap_err();
        assert!(matches!(error, VolumeError::ForeignLock { .. }), "{error}");
    }
}
