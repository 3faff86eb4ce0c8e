//! The unix socket that QEMU connects to, in a directory that only this user can enter.

use std::fs::{DirBuilder, remove_dir, remove_file, symlink_metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use super::error::RelayError;

/// What a socket address holds, without the final zero.
const PATH_LIMIT: usize = 107;

/// A listening socket. Its file goes when it is dropped, and the directory with the last socket in it.
#[derive(Debug)]
pub(super) struct PrivateSocket {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    directory: PathBuf,
}

impl PrivateSocket {
    /// Listens at `name` in `directory`, which is made for this user alone, or is that already.
    pub(super) fn bind(directory: &Path, name: &str) -> Result<Self, RelayError> {
        let path = directory.join(name);
        let length = path.as_os_str().as_bytes().len();
        if length > PATH_LIMIT {
            return Err(RelayError::PathTooLong {
                path,
                length,
                limit: PATH_LIMIT,
            });
        }
        let at = path.clone();
        let failed = |source: io::Error| RelayError::Socket {
            path: at.clone(),
            source: Arc::new(source),
        };
        make_private(directory).map_err(failed)?;
        let directory = directory.to_owned();
        // Before there is a file of ours to remove: the name may be taken.
        let listener = match UnixListener::bind(&path) {
            Ok(listener) => listener,
            Err(source) => {
                // It goes if it was made for this socket alone.
                let emptied = remove_dir(&directory);
                tracing::debug!(?emptied, "no migration socket");
                return Err(failed(source));
            }
        };
        let file = SocketFile { path, directory };
        Ok(Self { listener, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = remove_file(&self.path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        let removed = removed.and_then(|()| match remove_dir(&self.directory) {
            // Another socket of this session is still in it.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        });
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "migration socket left behind");
        }
    }
}

/// Makes the directory, or makes sure that an existing one is nobody else's.
fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = symlink_metadata(directory)?;
            let ours = found.is_dir()
                && found.mode() & 0o077 == 0
                && found.uid() == nix::unistd::geteuid().as_raw();
            if ours { Ok(()) } else { Err(error) }
        }
        other => other,
    }
}
