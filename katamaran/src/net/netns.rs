//! Network namespaces: open one, run something inside it.
//!
//! A thread's network namespace is the thread's own. Entering one on a runtime thread would move
//! every task that happens to run there later, so [`NetNs::run`] starts a thread for it. A socket
//! keeps the namespace that it was created in, so [`NetNs::netlink`] creates its socket there and uses
//! it from anywhere.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::{NetError, Netlink, Result};

const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives at least as long as this does.
#[derive(Clone)]
pub struct NetNs {
    file: Arc<File>,
    label: Arc<str>,
    inode: u64,
}

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::open(OWN_NETNS)
    }

    /// The namespace at a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let label = path.display().to_string();
        File::options()
            .read(true)
            // A pipe without a writer would not open otherwise.
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
            .and_then(|file| Self::from_file(file, label))
            .map_err(|source| NetError::OpenNetNs {
                path: path.to_owned(),
                source,
            })
    }

    /// A new one, with nothing in it but a loopback device that is down. It vanishes with the last descriptor.
    ///
    /// # Errors
    /// No right to make one (CAP_SYS_ADMIN).
    pub fn fresh() -> Result<Self> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("ktm-netns".to_owned())
                .spawn_scoped(scope, || {
                    unshare(CloneFlags::CLONE_NEWNET)
                        .map_err(|errno| NetError::kernel("make", "a network namespace", errno))?;
                    Self::current()
                })
                .map_err(|source| NetError::Thread {
                    netns: "a new one".to_owned(),
                    source,
                })?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// There is no such process, or it is not ours to look at.
    pub fn of_pid(pid: i32) -> Result<Self> {
        Self::open(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// The namespace behind a descriptor; `label` names it in messages.
    pub(crate) fn from_fd(fd: OwnedFd, label: &str) -> Result<Self> {
        Self::from_file(File::from(fd), label.to_owned()).map_err(|source| NetError::OpenNetNs {
            path: PathBuf::from(label),
            source,
        })
    }

    /// The namespace with this number, if a process is in it or it has a name; looked for in `/proc`, which takes a moment.
    #[must_use]
    pub fn by_inode(inode: u64) -> Option<Self> {
        let is_it = |path: PathBuf| {
            let metadata = std::fs::metadata(&path).ok()?;
            (metadata.ino() == inode).then(|| Self::open(&path).ok())?
        };
        let entries =
            |directory: &str| std::fs::read_dir(directory).into_iter().flatten().flatten();
        is_it(PathBuf::from(OWN_NETNS))
            .or_else(|| entries("/run/netns").find_map(|entry| is_it(entry.path())))
            .or_else(|| entries("/proc").find_map(|entry| is_it(entry.path().join("ns/net"))))
    }

    fn from_file(file: File, label: String) -> std::io::Result<Self> {
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(std::io::Error::other(
                "it is no namespace: those are at /run/netns/NAME or /proc/PID/ns/net",
            ));
        }
        let inode = file.metadata()?.ino();
        Ok(Self {
            file: Arc::new(file),
            label: label.into(),
            inode,
        })
    }

    /// The inode number, which identifies the namespace (`net:[4026531840]`; `inum` in the kernel).
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The open file that stands for it.
    #[must_use]
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Runs `work` on a thread of its own inside this namespace and waits for it. Blocks the caller
    /// for as long as `work` takes. A panic in `work` goes on in the caller.
    ///
    /// # Errors
    /// The thread can't be started, or may not enter the namespace (CAP_SYS_ADMIN).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("ktm-netns".to_owned())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    Ok(work())
                })
                .map_err(|source| NetError::Thread {
                    netns: self.to_string(),
                    source,
                })?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Opens a netlink socket inside this namespace, driven by a task on the current runtime.
    ///
    /// # Errors
    /// No tokio runtime, no socket, or no right to enter the namespace.
    pub fn netlink(&self) -> Result<Netlink> {
        Netlink::open(self)
    }

    /// Moves the calling thread, which must be one of ours, into the namespace. Without privilege
    /// this works for the namespace that the thread is in already.
    fn enter(&self) -> Result<()> {
        let here = std::fs::metadata(OWN_NETNS).map_err(|source| NetError::OpenNetNs {
            path: OWN_NETNS.into(),
            source,
        })?;
        if here.ino() == self.inode {
            return Ok(());
        }
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetError::kernel("enter network namespace", self, errno))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (net:[{}])", self.label, self.inode)
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetNs({self})")
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for NetNs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_ones_own_namespace_needs_no_privilege() {
        let own = NetNs::current().unwrap();
        let inside = own.run(|| NetNs::current().unwrap().inode()).unwrap();
        assert_eq!(inside, own.inode());
    }

    #[test]
    fn a_process_that_is_gone_has_no_namespace() {
        assert!(NetNs::of_pid(i32::MAX).unwrap_err().already_gone());
    }

    #[test]
    fn a_handle_needs_a_runtime() {
        let error = NetNs::current().unwrap().netlink().unwrap_err();
        assert!(matches!(error, NetError::NoRuntime { .. }), "{error:?}");
    }
}
