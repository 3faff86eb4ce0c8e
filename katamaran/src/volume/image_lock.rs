//! QEMU's own image locks: what they say about who may write, and katamaran's stand-in for them.
//!
//! A QEMU that runs a VM holds byte 101 of the image (it writes) and byte 201 (nobody else may write).
//! One that waits for a migration, or has handed its VM over, has its images *inactive* and holds nothing. With
//! `file.locking=off` it never locks nor looks. See the table in [`mark`](super::mark).

use std::os::fd::AsFd as _;

use nix::errno::Errno;

use super::descriptors::Descriptor;
use super::lock::{self, Range};
use super::open::Volume;
use super::{Result, VolumeError};
use crate::pidfd;

/// QEMU's permissions: consistent read, write, write unchanged, resize, and one that older ones know.
const PERMISSIONS: u64 = 5;
const USES: u64 = 100;
const DENIES: u64 = 200;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// What the locks of a volume's QEMU say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageLocks {
    /// It writes, and nobody else may.
    SoleWriter,
    /// It writes, and lets others write (`share-rw=on`).
    SharedWriter,
    /// It holds the image, but not for writing.
    NotWriting,
    /// It holds nothing: the image is inactive, or `locking=off`.
    Nothing,
}

impl Volume {
    /// What QEMU's locks on the volume are now.
    ///
    /// # Errors
    /// QEMU is gone, or not ours to look at.
    pub fn image_locks(&self) -> Result<ImageLocks> {
        Ok(judge(&self.qemu_descriptors()?))
    }

    /// Whether somebody who is not the volume's QEMU holds image locks on it: another QEMU, or a tool of
    /// QEMU's. Also one on another node, where locks are shared.
    ///
    /// The question is asked through QEMU's own open file, for which QEMU's own locks are not in the way.
    /// The duplicate is closed at once: as long as it is open, QEMU could not give up its locks by closing
    /// its own.
    ///
    /// # Errors
    /// QEMU is gone, may not be traced, or the file system takes no locks.
    pub fn has_other_image_user(&self) -> Result<bool> {
        let failed = VolumeError::lock("ask for image locks of", &self.path);
        self.other_image_user(&self.qemu_descriptors()?)
            .map_err(failed)
    }

    fn other_image_user(&self, descriptors: &[Descriptor]) -> std::result::Result<bool, Errno> {
        let process = pidfd::open(self.qemu)?;
        for descriptor in descriptors {
            let qemu = pidfd::getfd(process.as_fd(), descriptor.fd)?;
            for base in [USES, DENIES] {
                let range = Range {
                    start: base,
                    length: PERMISSIONS,
                };
                let found = lock::held_by_others(&qemu, range)?;
                // QEMU may have the image open twice.
                let others = found.is_some_and(|found| {
                    !descriptors
                        .iter()
                        .any(|own| own.fd != descriptor.fd && own.holds(found.start))
                });
                if others {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Takes the locks of a writing QEMU, for one that does not take them itself, until they are given
    /// up or the volume is dropped. Never beside a QEMU that locks: it would find itself locked out.
    ///
    /// # Errors
    /// Somebody else writes or does not share, or the file system takes no locks.
    pub fn stand_in(&self) -> Result<()> {
        let failed = |errno| VolumeError::lock("lock the image", &self.path)(errno);
        for byte in stand_in_bytes() {
            lock::hold(&self.file, byte).map_err(failed)?;
        }
        for byte in [USES + WRITE, USES + RESIZE, DENIES, DENIES + WRITE] {
            if let Some(found) =
                lock::held_by_others(&self.file, Range::byte(byte)).map_err(failed)?
            {
                self.stand_down();
                return Err(VolumeError::ForeignLock {
                    path: self.path.clone(),
                    what: format!("byte {} (an image lock of QEMU's)", found.start),
                });
            }
        }
        Ok(())
    }

    /// Gives up what [`stand_in`](Self::stand_in) took.
    pub fn stand_down(&self) {
        for byte in stand_in_bytes() {
            self.unlock(byte);
        }
    }
}

fn stand_in_bytes() -> impl Iterator<Item = Range> {
    [
        USES,
        USES + WRITE,
        USES + RESIZE,
        DENIES + WRITE,
        DENIES + RESIZE,
    ]
    .into_iter()
    .map(Range::byte)
}

fn judge(descriptors: &[Descriptor]) -> ImageLocks {
    let holds = |byte| descriptors.iter().any(|d| d.holds(byte));
    let any = (0..PERMISSIONS).any(|p| holds(USES + p) || holds(DENIES + p));
    match (holds(USES + WRITE), holds(DENIES + WRITE), any) {
        (true, true, _) => ImageLocks::SoleWriter,
        (true, false, _) => ImageLocks::SharedWriter,
        (false, _, true) => ImageLocks::NotWriting,
        (false, _, false) => ImageLocks::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// An image, the open file that plays QEMU, and the volume.
    fn image() -> (tempfile::TempDir, File, Volume) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"x").unwrap();
        let qemu = File::open(&path).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let volume = Volume::open(pid, &path).unwrap();
        (dir, qemu, volume)
    }

    fn hold(file: &File, bytes: &[u64]) {
        for byte in bytes {
            lock::hold(file, Range::byte(*byte)).unwrap();
        }
    }

    #[test]
    fn what_qemu_may_do_is_read_from_its_locks() {
        let (_dir, qemu, volume) = image();
        assert_eq!(volume.image_locks().unwrap(), ImageLocks::Nothing);
        hold(&qemu, &[100]);
        assert_eq!(volume.image_locks().unwrap(), ImageLocks::NotWriting);
        hold(&qemu, &[101]);
        assert_eq!(volume.image_locks().unwrap(), ImageLocks::SharedWriter);
        hold(&qemu, &[201, 203]);
        assert_eq!(volume.image_locks().unwrap(), ImageLocks::SoleWriter);
    }

    #[test]
    fn the_stand_in_keeps_a_second_writer_out_until_it_stands_down() {
        let (_dir, other, volume) = image();
        volume.stand_in().unwrap();
        // What a QEMU that wants to write asks: does anybody deny it?
        let deny = Range::byte(DENIES + WRITE);
        assert!(lock::held_by_others(&other, deny).unwrap().is_some());
        volume.stand_down();
        assert_eq!(lock::held_by_others(&other, deny), Ok(None));
    }

    #[test]
    fn the_stand_in_gives_way_to_somebody_who_is_there_already() {
        let (_dir, other, volume) = image();
        hold(&other, &[101]);
        let error = volume.stand_in().unwrap_err();
        assert!(error.to_string().contains("byte 101"), "{error}");
        let (start, length) = (USES, 200);
        let all = Range { start, length };
        assert_eq!(lock::held_by_others(&other, all), Ok(None));
    }
}
