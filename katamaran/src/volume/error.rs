//! What can go wrong with a volume.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// An error of [`crate::volume`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// A file can't be looked at.
    #[error("{doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The name does not lead to what QEMU has open.
    #[error(
        "process {pid} does not have {} open: the name leads to something else by now, or QEMU got \
         the volume as a descriptor",
        .path.display()
    )]
    NotOpen {
        /// QEMU.
        pid: i32,
        /// The volume's name there.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a file nor a block device", .path.display())]
    NotAVolume {
        /// Its name.
        path: PathBuf,
    },
    /// The file system does not take locks.
    #[error("{doing} {}: its file system does not support it (are locks off, as with `nolock`?)", .path.display())]
    NoLocks {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        errno: Errno,
    },
    /// Another migration has the volume.
    #[error("{} is being migrated already, by session ..{session}{}", .path.display(), by(.holder.as_deref()))]
    Migrating {
        /// Its name.
        path: PathBuf,
        /// The end of the other session's id.
        session: String,
        /// The process that holds the lock, if it runs on this node.
        holder: Option<String>,
    },
    /// Somebody holds a lock over katamaran's own bytes.
    #[error("{}: somebody else holds a lock over {what} of it", .path.display())]
    ForeignLock {
        /// Its name.
        path: PathBuf,
        /// Which bytes.
        what: String,
    },
    /// A persistent reservation request failed.
    #[error("{doing}: {}: {why}", .path.display())]
    Reservation {
        /// What was asked for.
        doing: &'static str,
        /// The device.
        path: PathBuf,
        /// What came of it.
        why: String,
    },
    /// Somebody else is registered with the device.
    #[error(
        "other nodes are registered with {} for persistent reservations, with keys {keys}: it is in use there, or \
         a migration was broken off; if nobody uses them, clear them, such as with `sg_persist`",
        .path.display()
    )]
    Registered {
        /// The device.
        path: PathBuf,
        /// Their keys.
        keys: String,
    },
}

fn by(holder: Option<&str>) -> String {
    holder.map_or_else(
        || " (not a process of this node)".to_owned(),
        |holder| format!(" ({holder})"),
    )
}

impl VolumeError {
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    pub(super) fn lock(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| match errno {
            Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS => {
                Self::NoLocks { doing, path, errno }
            }
            errno => Self::Io {
                doing,
                path,
                source: errno.into(),
            },
        }
    }
}
