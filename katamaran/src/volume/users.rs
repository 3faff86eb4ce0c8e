//! Who else on this node has a volume open.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::descriptors::{self, Inode};
use super::open::Volume;
use super::{Result, VolumeError};

impl Volume {
    /// Who on this node could write to the volume, besides its QEMU and the processes `known`: processes
    /// that have it open for writing, loop devices on it, and whatever claims a block device for itself (a
    /// mount, a device mapper table, swap).
    ///
    /// What other nodes have open is not seen here.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn other_writers(&self, known: &[i32]) -> Result<Vec<String>> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let processes = processes().map_err(VolumeError::io("read", "/proc"))?;
        let mut writers = Vec::new();
        for pid in processes {
            if pid == self.qemu || pid == own || known.contains(&pid) {
                continue;
            }
            // A process that is gone, or a kernel thread, has nothing open.
            let descriptors = descriptors::of_process(pid, self.inode).unwrap_or_default();
            if descriptors.iter().any(|descriptor| descriptor.writable) {
                writers.push(describe(pid));
            }
        }
        writers.extend(loop_devices(Path::new("/sys/block"), self.inode));
        if self.device_number().is_some() && is_claimed(&self.path, self.qemu) {
            writers.push(
                "a mount, the device mapper or another exclusive user of the device".to_owned(),
            );
        }
        Ok(writers)
    }
}

/// The process that holds a lock on a byte, if it runs on this node.
pub(super) fn holder_of(inode: Inode, byte: u64) -> Option<String> {
    processes().ok()?.into_iter().find_map(|pid| {
        let descriptors = descriptors::of_process(pid, inode).ok()?;
        let holds = descriptors.iter().any(|descriptor| descriptor.holds(byte));
        holds.then(|| describe(pid))
    })
}

fn processes() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(pids)
}

fn describe(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid}, {}", name.trim())
}

/// A loop device keeps its file open without any process.
fn loop_devices(block: &Path, inode: Inode) -> Vec<String> {
    let Ok(entries) = fs::read_dir(block) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let metadata = fs::metadata(backing.trim_end()).ok()?;
            let read_only = fs::read_to_string(entry.path().join("ro")).ok();
            let writes = read_only.is_none_or(|ro| ro.trim() != "1");
            (writes && Inode::of(&metadata) == Some(inode))
                .then(|| format!("loop device {}", entry.file_name().to_string_lossy()))
        })
        .collect()
}

/// Whether somebody has claimed a block device for itself. QEMU does not.
fn is_claimed(path: &Path, qemu: i32) -> bool {
    let path =
        PathBuf::from(format!("/proc/{qemu}/root")).join(path.strip_prefix("/").unwrap_or(path));
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
        .open(path);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_device_on_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, b"x").unwrap();
        let inode = Inode::of(&fs::metadata(&image).unwrap()).unwrap();
        let device = dir.path().join("block/loop3/loop");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(dir.path().join("block/sda")).unwrap();
        fs::write(
            device.join("backing_file"),
            format!("{}\n", image.display()),
        )
        .unwrap();
        let block = dir.path().join("block");
        assert_eq!(loop_devices(&block, inode), ["loop device loop3"]);
        fs::write(block.join("loop3/ro"), "1\n").unwrap();
        assert_eq!(loop_devices(&block, inode), Vec::<String>::new());
    }
}
