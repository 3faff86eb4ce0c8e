//! The unix socket that QEMU connects to, in a directory of its own.

use std::fs::{DirBuilder, remove_dir, remove_file};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use super::error::RelayError;

/// What a socket address holds, without the final zero.
const PATH_LIMIT: usize = 107;

/// A listening socket; its file and directory go when it is dropped.
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
    /// Makes `directory`, which must not exist yet, for this user alone, and listens in it.
    pub(super) fn bind(directory: &Path) -> Result<Self, RelayError> {
        let path = directory.join("ram.sock");
        let length = path.as_os_str().as_bytes().len();
        if length > PATH_LIMIT {
            return Err(RelayError::PathTooLong {
                path,
                length,
                limit: PATH_LIMIT,
            });
        }
        let failed = |source: io::Error| RelayError::Socket {
            path: path.clone(),
            source: Arc::new(source),
        };
        DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let file = SocketFile {
            path: path.clone(),
            directory: directory.to_owned(),
        };
        let listener = UnixListener::bind(&path).map_err(failed)?;
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
        if let Err(error) = removed.and_then(|()| remove_dir(&self.directory)) {
            tracing::warn!(path = %self.path.display(), %error, "migration socket left behind");
        }
    }
}
