//! An open-file-description lock on a whole file: held for as long as the open file is, also across a rename, and asked for
//! without being taken.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Takes the lock; `false` when somebody else has it.
pub(super) fn take(file: &File) -> Result<bool, Errno> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK)?)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether another open file has the lock.
pub(super) fn is_taken(file: &File) -> Result<bool, Errno> {
    let mut answer = whole(libc::F_WRLCK)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
    Ok(i32::from(answer.l_type) != libc::F_UNLCK)
}

fn whole(kind: libc::c_int) -> Result<libc::flock, Errno> {
    let short = |n: libc::c_int| libc::c_short::try_from(n).map_err(|_too_big| Errno::EINVAL);
    Ok(libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        // For OFD locks the kernel insists on 0.
        l_pid: 0,
    })
}
