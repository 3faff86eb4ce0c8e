//! Which block device it is, by what the device says of itself and the kernel shows in `/sys`.
//!
//! | device | identity |
//! |---|---|
//! | SCSI disk | the NAA or EUI-64 designator of its VPD page 0x83 (`device/wwid`) |
//! | NVMe namespace | its UUID, NGUID or EUI-64 (`wwid`) |
//! | multipath map | the WWID that multipathd has given it (`dm/uuid`) |
//! | other device mapper | its UUID, and what all its slaves are |
//! | mapped RBD image | cluster, pool, namespace, image id and snapshot |
//! | partition | what its disk is, where it begins and how long it is |
//!
//! What is only as unique as a vendor's serial number (`t10.`, `nvme.`, a virtio disk's serial) is no
//! identity: emulated disks share theirs. Nor has an nbd or loop device any.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::open::Volume;

/// How deep devices are stacked, at most.
const DEPTH: u32 = 8;

impl Volume {
    /// What a block device says that it is, the same on every node; `None` for a file, and where it says
    /// nothing that is unique.
    #[must_use]
    pub fn device_identity(&self) -> Option<String> {
        let number = self.device_number()?;
        identity(Path::new("/sys"), major(number), minor(number), DEPTH)
    }

    /// Whether the volume is all of what a reservation would be about: not a partition nor a part of
    /// something, whose other parts would be fenced off with it.
    pub(super) fn is_whole_unit(&self) -> bool {
        let Some(number) = self.device_number() else {
            return false;
        };
        is_whole(&directory(Path::new("/sys"), major(number), minor(number)))
    }
}

fn directory(sys: &Path, major: u64, minor: u64) -> PathBuf {
    sys.join(format!("dev/block/{major}:{minor}"))
}

fn read(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn is_whole(device: &Path) -> bool {
    let multipath = read(device, "dm/uuid").map(|uuid| uuid.starts_with("mpath-"));
    let real = device.join("device").exists() && read(device, "device/cluster_fsid").is_none();
    !device.join("partition").exists() && multipath.unwrap_or(real)
}

fn identity(sys: &Path, major: u64, minor: u64, depth: u32) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    let device = directory(sys, major, minor);
    if device.join("partition").exists() {
        let disk = fs::canonicalize(&device).ok()?.parent()?.to_owned();
        let (major, minor) = number(&disk)?;
        let disk = identity(sys, major, minor, depth)?;
        let (start, size) = (read(&device, "start")?, read(&device, "size")?);
        return Some(format!("{disk}, {size} sectors from {start}"));
    }
    if let Some(uuid) = read(&device, "dm/uuid") {
        return device_mapper(sys, &device, &uuid, depth);
    }
    if let Some(cluster) = read(&device, "device/cluster_fsid") {
        let part = |name| read(&device, &format!("device/{name}"));
        let (pool, image) = (part("pool_id")?, part("image_id")?);
        // `pool_ns` is newer than the others, and empty for the default namespace.
        let namespace = part("pool_ns").unwrap_or_default();
        let snapshot = part("current_snap").unwrap_or_else(|| "-".to_owned());
        return Some(format!(
            "rbd {cluster}/{pool}/{namespace}/{image}@{snapshot}"
        ));
    }
    ["wwid", "device/wwid"]
        .iter()
        .filter_map(|name| read(&device, name))
        .find(|wwid| {
            ["naa.", "eui.", "uuid."]
                .iter()
                .any(|kind| wwid.starts_with(kind))
        })
}

/// A multipath map is its disk. Any other map may be a copy of its namesake on copied disks, so that its
/// own UUID is not enough.
fn device_mapper(sys: &Path, device: &Path, uuid: &str, depth: u32) -> Option<String> {
    if let Some(wwid) = uuid.strip_prefix("mpath-") {
        return Some(format!("multipath {wwid}"));
    }
    let mut slaves = Vec::new();
    for slave in fs::read_dir(device.join("slaves")).ok()? {
        let (major, minor) = number(&slave.ok()?.path())?;
        slaves.push(identity(sys, major, minor, depth)?);
    }
    slaves.sort();
    (!slaves.is_empty()).then(|| format!("dm {uuid} on {}", slaves.join(" and ")))
}

/// `dev`: `8:0`.
fn number(device: &Path) -> Option<(u64, u64)> {
    let text = read(device, "dev")?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys` with devices as the kernel shows them, each file by its path and content.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if let Some(target) = content.strip_prefix("-> ") {
                std::os::unix::fs::symlink(target, path).unwrap();
            } else {
                fs::write(path, format!("{content}\n")).unwrap();
            }
        }
        dir
    }

    fn told(sys: &tempfile::TempDir, minor: u64) -> Option<String> {
        identity(sys.path(), 8, minor, DEPTH)
    }

    #[test]
    fn disks_are_known_by_their_world_wide_names_only() {
        let sys = sysfs(&[
            (
                "dev/block/8:0/device/wwid",
                "naa.600140530c8d3a2d9a34a2b8e1f0c2d1",
            ),
            ("dev/block/8:16/wwid", "eui.0025385b61b0a8f4"),
            (
                "dev/block/8:32/device/wwid",
                "t10.ATA QEMU HARDDISK QM00001",
            ),
            (
                "dev/block/8:48/wwid",
                "nvme.1b36-6465616462656566-51454d55-00000001",
            ),
            ("dev/block/8:64/serial", "disk0"),
        ]);
        assert_eq!(
            told(&sys, 0).unwrap(),
            "naa.600140530c8d3a2d9a34a2b8e1f0c2d1"
        );
        assert_eq!(told(&sys, 16).unwrap(), "eui.0025385b61b0a8f4");
        for weak in [32, 48, 64, 80] {
            assert_eq!(told(&sys, weak), None);
        }
    }

    #[test]
    fn a_partition_is_its_disk_and_its_place_there() {
        let sys = sysfs(&[
            ("block/sda/dev", "8:0"),
            ("block/sda/device/wwid", "naa.5000"),
            ("block/sda/sda1/partition", "1"),
            ("block/sda/sda1/start", "2048"),
            ("block/sda/sda1/size", "4096"),
            ("dev/block/8:0", "-> ../../block/sda"),
            ("dev/block/8:1", "-> ../../block/sda/sda1"),
        ]);
        assert_eq!(told(&sys, 1).unwrap(), "naa.5000, 4096 sectors from 2048");
        assert!(is_whole(&directory(sys.path(), 8, 0)));
        assert!(!is_whole(&directory(sys.path(), 8, 1)));
    }

    #[test]
    fn a_device_mapper_volume_is_known_if_all_below_it_is() {
        let sys = sysfs(&[
            ("dev/block/8:0/dev", "8:0"),
            ("dev/block/8:0/device/wwid", "naa.5000"),
            ("dev/block/8:16/dev", "8:16"),
            ("dev/block/8:16/serial", "virtio"),
            ("dev/block/8:240/dm/uuid", "LVM-abc"),
            ("dev/block/8:240/slaves/sda", "-> ../../8:0"),
            ("dev/block/8:241/dm/uuid", "LVM-def"),
            ("dev/block/8:241/slaves/sda", "-> ../../8:0"),
            ("dev/block/8:241/slaves/vdb", "-> ../../8:16"),
            ("dev/block/8:242/dm/uuid", "mpath-3600140530c8d3a2d"),
        ]);
        assert_eq!(told(&sys, 240).unwrap(), "dm LVM-abc on naa.5000");
        assert_eq!(told(&sys, 241), None);
        assert_eq!(told(&sys, 242).unwrap(), "multipath 3600140530c8d3a2d");
        assert!(!is_whole(&directory(sys.path(), 8, 240)));
        assert!(is_whole(&directory(sys.path(), 8, 242)));
    }

    #[test]
    fn an_rbd_image_is_known_by_cluster_pool_and_image() {
        let image = |name: &str| format!("dev/block/8:0/device/{name}");
        let sys = sysfs(&[
            (
                &image("cluster_fsid"),
                "1f2e3d4c-0000-4000-8000-000000000001",
            ),
            (&image("pool_id"), "7"),
            (&image("image_id"), "5e1d2a6b8b4567"),
            (&image("current_snap"), "-"),
        ]);
        assert_eq!(
            told(&sys, 0).unwrap(),
            "rbd 1f2e3d4c-0000-4000-8000-000000000001/7//5e1d2a6b8b4567@-"
        );
        assert!(!is_whole(&directory(sys.path(), 8, 0)));
    }
}
