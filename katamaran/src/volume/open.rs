//! A volume that QEMU has open, opened a second time.

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use super::descriptors::{self, Descriptor, Inode};
use super::{Result, VolumeError};

/// A volume of a QEMU on this node, in an open file of our own, whose locks live as long as this value, and
/// never longer than this process.
///
/// A file is open for writing, too, where that is allowed, and never written to: an NFS client that has
/// a file open for reading only may be delegated it, and then keeps its locks to itself. An open for
/// writing on another node takes the delegation back, and the locks go to the server (RFC 8881, 10.4).
#[derive(Debug)]
pub struct Volume {
    /// As QEMU names it.
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) inode: Inode,
    pub(super) qemu: i32,
}

impl Volume {
    /// Opens what process `pid` has open under the name `path`, in its own mount namespace: not what that
    /// name leads to for us.
    ///
    /// # Errors
    /// The name leads nowhere, or to something that the process does not have open.
    pub fn open(pid: i32, path: &Path) -> Result<Self> {
        let inode = resolve(pid, path)?;
        let not_open = || VolumeError::NotOpen {
            pid,
            path: path.to_owned(),
        };
        let descriptors = descriptors::of_process(pid, inode).map_err(VolumeError::io(
            "look for",
            format!("/proc/{pid}/fd to {}", path.display()),
        ))?;
        let first = descriptors.first().ok_or_else(not_open)?;
        let file = reopen(pid, first.fd, inode).map_err(VolumeError::io("open", path))?;
        let metadata = file.metadata().map_err(VolumeError::io("look at", path))?;
        // QEMU may have closed it in between, and opened something else.
        if Inode::of(&metadata) != Some(inode) {
            return Err(not_open());
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            inode,
            qemu: pid,
        })
    }

    /// As QEMU names it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of a block device; `None` for a file.
    #[must_use]
    pub fn device_number(&self) -> Option<u64> {
        match self.inode {
            Inode::Device { number } => Some(number),
            Inode::File { .. } => None,
        }
    }

    /// Device and inode of a file; `None` for a block device.
    #[must_use]
    pub fn file_number(&self) -> Option<(u64, u64)> {
        match self.inode {
            Inode::File { device, inode } => Some((device, inode)),
            Inode::Device { .. } => None,
        }
    }

    /// QEMU's descriptors of it as they are now: QEMU opens it anew when what it may do with it changes.
    pub(super) fn qemu_descriptors(&self) -> Result<Vec<Descriptor>> {
        descriptors::of_process(self.qemu, self.inode).map_err(VolumeError::io(
            "look for",
            format!("/proc/{}/fd to {}", self.qemu, self.path.display()),
        ))
    }
}

/// What a name leads to in the mount namespace of a process, symbolic links included.
fn resolve(pid: i32, path: &Path) -> Result<Inode> {
    let base = if path.is_absolute() { "root" } else { "cwd" };
    let base = PathBuf::from(format!("/proc/{pid}/{base}"));
    let directory = File::open(&base).map_err(VolumeError::io("open", &base))?;
    // A relative name may climb out of the working directory; an absolute link must stay in the root.
    let resolve = if path.is_absolute() {
        ResolveFlag::RESOLVE_IN_ROOT
    } else {
        ResolveFlag::empty()
    };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(resolve);
    let found = openat2(&directory, path, how)
        .map_err(|errno| VolumeError::io("find", path)(errno.into()))?;
    let metadata = File::from(found)
        .metadata()
        .map_err(VolumeError::io("look at", path))?;
    if metadata.file_type().is_char_device() {
        return Err(VolumeError::NotAVolume {
            path: path.to_owned(),
        });
    }
    Inode::of(&metadata).ok_or_else(|| VolumeError::NotAVolume {
        path: path.to_owned(),
    })
}

/// A new open file of what a descriptor is open on. A file server may deny root what it grants to the
/// user that QEMU runs as (`root_squash`).
fn reopen(pid: i32, fd: i32, inode: Inode) -> std::io::Result<File> {
    let path = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
    match open(&path, inode) {
        Err(error) if is_denied(&error) => {
            let (uid, gid) = owner(pid)?;
            open_as(uid, gid, path, inode)
        }
        other => other,
    }
}

fn open(path: &Path, inode: Inode) -> std::io::Result<File> {
    // Closing a device that was open for writing has udev look at it again.
    if matches!(inode, Inode::Device { .. }) {
        return File::open(path);
    }
    match File::options().read(true).write(true).open(path) {
        Err(error) if is_denied(&error) => File::open(path),
        other => other,
    }
}

fn is_denied(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY)
    )
}

/// Opens a file with the file system rights of another user, on a thread that ends with that.
fn open_as(uid: Uid, gid: Gid, path: PathBuf, inode: Inode) -> std::io::Result<File> {
    std::thread::spawn(move || {
        // These two tell the former id and nothing else; where they have no effect, open(2) fails.
        setfsgid(gid);
        setfsuid(uid);
        open(&path, inode)
    })
    .join()
    .unwrap_or_else(|_panic| Err(std::io::Error::other("the thread that opens it died")))
}

/// The user and group that a process accesses files as.
fn owner(pid: i32) -> std::io::Result<(Uid, Gid)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    // Real, effective, saved, file system.
    let id = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|ids| ids.split_whitespace().nth(3)?.parse().ok())
            .ok_or_else(|| std::io::Error::other(format!("no {name} in /proc/{pid}/status")))
    };
    Ok((Uid::from_raw(id("Uid:")?), Gid::from_raw(id("Gid:")?)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn what_a_process_has_open_is_opened_again_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let (image, link) = (dir.path().join("image"), dir.path().join("link"));
        let held = File::create(&image).unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let volume = Volume::open(own_pid(), &link).unwrap();
        let same = Inode::of(&held.metadata().unwrap()).unwrap();
        assert_eq!(volume.inode, same);
        assert!(volume.device_number().is_none() && volume.file_number().is_some());
    }

    #[test]
    fn a_name_that_leads_to_another_file_by_now_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let _held = File::create(&image).unwrap();
        std::fs::remove_file(&image).unwrap();
        std::fs::write(&image, b"another").unwrap();
        let error = Volume::open(own_pid(), &image).unwrap_err();
        assert!(matches!(error, VolumeError::NotOpen { .. }), "{error}");
    }

    #[test]
    fn a_name_that_leads_nowhere_or_to_no_volume_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Volume::open(own_pid(), &dir.path().join("gone")).unwrap_err();
        assert!(gone.to_string().contains("gone"), "{gone}");
        let error = Volume::open(own_pid(), dir.path()).unwrap_err();
        assert!(matches!(error, VolumeError::NotAVolume { .. }), "{error}");
        let error = Volume::open(own_pid(), Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, VolumeError::NotAVolume { .. }), "{error}");
    }

    #[test]
    fn a_file_is_opened_with_the_rights_of_another_user() {
        if !Uid::effective().is_root() {
            println!("SKIP a_file_is_opened_with_the_rights_of_another_user: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, b"x").unwrap();
        std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (uid, gid) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
        let inode = Inode::of(&std::fs::metadata(&image).unwrap()).unwrap();
        let error = open_as(uid, gid, image.clone(), inode).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        std::os::unix::fs::chown(&image, Some(65_534), None).unwrap();
        assert!(open_as(uid, gid, image.clone(), inode).is_ok());
        // The rest of this process is who it was.
        std::os::unix::fs::chown(&image, Some(0), None).unwrap();
        assert!(File::open(&image).is_ok());
    }

    #[test]
    fn the_owner_of_a_process_is_read_from_its_status() {
        assert_eq!(owner(own_pid()).unwrap().0, Uid::effective());
    }
}
