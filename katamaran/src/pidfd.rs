//! Processes as descriptors, and second descriptors of what they have open.

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

/// `pidfd_open(2)`, Linux 5.3. The descriptor is close-on-exec.
pub(crate) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers, touches no memory of ours.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) })
}

/// `pidfd_getfd(2)`, Linux 5.6: another descriptor of the *same* open file. It is close-on-exec, and
/// needs the right to trace the process (CAP_SYS_PTRACE).
pub(crate) fn getfd(process: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes three integers, touches no memory of ours.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0_u32) })
}

/// The descriptor that a system call has returned.
pub(crate) fn owned(fd: i64) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(fd)?;
    let fd = c_int::try_from(fd).map_err(|_too_big| Errno::EBADF)?;
    // SAFETY: the kernel has just returned this descriptor to us and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
