//! Which descriptors of a process are open on a volume, and which locks they hold: `/proc/PID/fd` and
//! `/proc/PID/fdinfo`.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Which file or device it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inode {
    File {
        device: u64,
        inode: u64,
    },
    /// A block device, by its number: it has as many nodes as people make.
    Device {
        number: u64,
    },
}

impl Inode {
    /// `None` for what can't be a volume.
    pub(super) fn of(metadata: &fs::Metadata) -> Option<Self> {
        let kind = metadata.file_type();
        if kind.is_file() {
            Some(Self::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            })
        } else if kind.is_block_device() {
            Some(Self::Device {
                number: metadata.rdev(),
            })
        } else {
            None
        }
    }
}

/// A lock that a descriptor's open file holds; `end` is its last byte, `None` the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeldLock {
    pub(super) start: u64,
    pub(super) end: Option<u64>,
}

impl HeldLock {
    pub(super) fn contains(self, at: u64) -> bool {
        self.start <= at && self.end.is_none_or(|end| at <= end)
    }
}

/// A descriptor that is open on the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) fd: i32,
    pub(super) writable: bool,
    pub(super) locks: Vec<HeldLock>,
}

impl Descriptor {
    pub(super) fn holds(&self, at: u64) -> bool {
        self.locks.iter().any(|lock| lock.contains(at))
    }
}

/// The descriptors of a process that are open on `inode`, by number.
///
/// What is closed while we look is one descriptor less. A file's number is compared before the file itself
/// is asked, so that no other file system is touched: one of them may hang.
pub(super) fn of_process(pid: i32, inode: Inode) -> io::Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Some(info) = unless_gone(fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")))?
        else {
            continue;
        };
        if let (Inode::File { inode, .. }, Some(told)) = (inode, inode_number(&info))
            && inode != told
        {
            continue;
        }
        if matches!(inode, Inode::Device { .. }) && !may_be_device(&entry.path())? {
            continue;
        }
        let Some(metadata) = unless_gone(fs::metadata(entry.path()))? else {
            continue;
        };
        if Inode::of(&metadata) == Some(inode) {
            found.push(Descriptor {
                fd,
                writable: is_writable(&info),
                locks: locks(&info),
            });
        }
    }
    found.sort_by_key(|descriptor| descriptor.fd);
    Ok(found)
}

/// Not a socket, a pipe or the like, whose links are no paths.
fn may_be_device(link: &Path) -> io::Result<bool> {
    Ok(unless_gone(fs::read_link(link))?.is_some_and(|target| target.is_absolute()))
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// `ino:`, Linux 5.14.
fn inode_number(fdinfo: &str) -> Option<u64> {
    field(fdinfo, "ino:").next()?.parse().ok()
}

/// `flags:`, the octal flags of open(2).
fn is_writable(fdinfo: &str) -> bool {
    let flags = field(fdinfo, "flags:").next();
    let flags = flags.and_then(|octal| i32::from_str_radix(octal, 8).ok());
    flags.is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// `lock:`, as in /proc/locks: `1: OFDLCK  ADVISORY  READ -1 00:1c:123 100 101`, the last number or `EOF`.
fn locks(fdinfo: &str) -> Vec<HeldLock> {
    field(fdinfo, "lock:")
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[_, kind, _, _, _, _, start, end] = words.as_slice() else {
                return None;
            };
            if !matches!(kind, "OFDLCK" | "POSIX") {
                return None;
            }
            Some(HeldLock {
                start: start.parse().ok()?,
                end: end.parse().ok(),
            })
        })
        .collect()
}

fn field<'a>(fdinfo: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    fdinfo
        .lines()
        .filter_map(move |line| line.strip_prefix(name))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "pos:\t0\nflags:\t02100002\nmnt_id:\t26\nino:\t117\n\
                        lock:\t1: OFDLCK  ADVISORY  READ -1 00:1c:117 100 101\n\
                        lock:\t2: OFDLCK  ADVISORY  READ -1 00:1c:117 203 203\n\
                        lock:\t3: POSIX  ADVISORY  WRITE 5 00:1c:117 300 EOF\n\
                        lock:\t4: FLOCK  ADVISORY  WRITE 5 00:1c:117 0 EOF\n";

    #[test]
    fn what_a_descriptor_is_and_holds_is_read_from_its_fdinfo() {
        assert_eq!(inode_number(INFO), Some(117));
        assert!(is_writable(INFO) && !is_writable("flags:\t0100000\n"));
        let locks = locks(INFO);
        assert_eq!(locks.len(), 3, "flock(2) locks are another matter");
        assert!(locks[0].contains(101) && !locks[0].contains(102));
        assert!(locks[2].contains(u64::MAX) && !locks[2].contains(299));
    }

    #[test]
    fn this_process_shows_its_own_descriptors_and_locks() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = fs::File::open(&path).unwrap();
        super::super::lock::hold(&file, super::super::lock::Range::byte(101)).unwrap();
        let inode = Inode::of(&file.metadata().unwrap()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = of_process(pid, inode).unwrap();
        // The temporary file's own descriptor can write and holds nothing.
        let held: Vec<_> = found.iter().filter(|d| d.holds(101)).collect();
        assert!(matches!(held.as_slice(), [d] if !d.writable), "{found:?}");
        assert!(found.iter().any(|d| d.writable && d.locks.is_empty()));
        assert!(of_process(i32::MAX, inode).is_err());
    }
}
