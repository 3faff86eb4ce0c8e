//! Open-file-description (OFD) locks on single bytes of a file.
//!
//! They belong to the open file, not to the process: closing another descriptor of the same file does not
//! drop them, as it drops classic POSIX locks, and they are gone at the latest when the process is. NFS and
//! CephFS carry them to every node. All locks here are *read* locks, for which a descriptor that
//! can only read is enough; that one is held is found by asking who is in the way of a *write* lock. QEMU
//! does it the same way (`raw_apply_lock_bytes()`, block/file-posix.c).

use std::fs::File;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    /// How many; 0 means up to the end, wherever that is.
    pub(super) length: u64,
}

impl Range {
    pub(super) fn byte(at: u64) -> Self {
        Self {
            start: at,
            length: 1,
        }
    }

    pub(super) fn contains(self, at: u64) -> bool {
        at >= self.start && (self.length == 0 || at - self.start < self.length)
    }
}

/// Read-locks a range for this open file.
pub(super) fn hold(file: &File, range: Range) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, range)?)).map(drop)
}

/// Gives up what this open file holds of a range.
pub(super) fn release(file: &File, range: Range) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_UNLCK, range)?)).map(drop)
}

/// A lock of some *other* open file within a range, if there is one.
pub(super) fn held_by_others<F: AsFd>(file: F, range: Range) -> Result<Option<Range>, Errno> {
    let mut answer = flock(libc::F_WRLCK, range)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
    if i32::from(answer.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(Range {
        start: u64::try_from(answer.l_start).map_err(|_negative| Errno::ERANGE)?,
        length: u64::try_from(answer.l_len).map_err(|_negative| Errno::ERANGE)?,
    }))
}

fn flock(kind: libc::c_int, range: Range) -> Result<libc::flock, Errno> {
    let short = |n: libc::c_int| libc::c_short::try_from(n).map_err(|_too_big| Errno::EINVAL);
    let offset = |n: u64| libc::off_t::try_from(n).map_err(|_too_big| Errno::EOVERFLOW);
    Ok(libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: offset(range.start)?,
        l_len: offset(range.length)?,
        // For OFD locks the kernel insists on 0.
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = 0x6b00_0000_0000_0007;

    #[test]
    fn a_lock_is_seen_by_every_other_open_file_and_not_by_its_own() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let (one, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        hold(&one, Range::byte(FAR)).unwrap();
        assert_eq!(held_by_others(&one, Range::byte(FAR)), Ok(None));
        let seen = held_by_others(&other, Range::byte(FAR)).unwrap();
        assert_eq!(seen, Some(Range::byte(FAR)));
        assert_eq!(held_by_others(&other, Range::byte(FAR + 1)), Ok(None));
        release(&one, Range::byte(FAR)).unwrap();
        assert_eq!(held_by_others(&other, Range::byte(FAR)), Ok(None));
    }

    #[test]
    fn closing_another_descriptor_of_the_file_keeps_a_lock_and_closing_its_own_drops_it() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let (one, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        hold(&one, Range::byte(FAR)).unwrap();
        drop(File::open(&path).unwrap());
        assert!(held_by_others(&other, Range::byte(FAR)).unwrap().is_some());
        drop(one);
        assert_eq!(held_by_others(&other, Range::byte(FAR)), Ok(None));
    }

    #[test]
    fn a_range_up_to_the_end_contains_everything_behind_its_start() {
        let all = Range {
            start: 5,
            length: 0,
        };
        assert!(all.contains(5) && all.contains(FAR) && !all.contains(4));
        assert!(Range::byte(FAR).contains(FAR) && !Range::byte(FAR).contains(FAR + 1));
    }
}
