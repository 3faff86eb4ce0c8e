//! Locks over NFS: two mounts of one export by two clients of the server, as two nodes have them. One kernel is
//! two clients if it speaks two minor versions of the protocol.
//!
//! Runs under the lab's other kernel, which is its own NFS server; `KATAMARAN_NFS_MOUNTS` names the mounts there.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use katamaran::volume::{ImageLocks, Side, Volume, VolumeError};
use katamaran_tests::lab::{Kernel, KernelRun};
use katamaran_tests::need::{self, Need};
use nix::fcntl::{FcntlArg, fcntl};

const SESSION: u64 = 0x1122_3344_5566_7788;
const MOUNTS: &str = "KATAMARAN_NFS_MOUNTS";

/// An NFSv4 server without any daemon: what `mountd` would answer is written into the kernel's caches.
const SET_UP: &str = r"
modprobe -a nfsd nfsv4
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /export /a /b /var/lib/nfs/v4recovery
mount -t tmpfs export /export
echo content > /export/disk
echo content > /export/twin
for cache in auth.unix.ip nfsd.export nfsd.fh; do echo > /proc/net/rpc/$cache/flush; done
echo 'nfsd 127.0.0.1 2147483647 lab' > /proc/net/rpc/auth.unix.ip/channel
echo 'lab /export 2147483647 8210 65534 65534 0' > /proc/net/rpc/nfsd.export/channel
echo 'lab 1 \x00000000 2147483647 /export' > /proc/net/rpc/nfsd.fh/channel
echo '-2 -3 +4 +4.1 +4.2' > /proc/fs/nfsd/versions
echo 10 > /proc/fs/nfsd/nfsv4gracetime
echo 2 > /proc/fs/nfsd/threads
echo Y > /proc/fs/nfsd/v4_end_grace
mount -i -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1 127.0.0.1:/ /a
mount -i -t nfs4 -o vers=4.1,addr=127.0.0.1,clientaddr=127.0.0.1 127.0.0.1:/ /b
mount | grep nfs4
";

#[test]
fn each_side_sees_the_others_locks_through_an_nfs_server() {
    let test = "each_side_sees_the_others_locks_through_an_nfs_server";
    if std::env::var_os(MOUNTS).is_some() || !need::met(test, &[Need::Lab]) {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let step = "nfs::steps_on_two_mounts";
    let run = KernelRun {
        set_up: SET_UP,
        environment: &[(MOUNTS, "/a,/b")],
        deadline: Duration::from_secs(240),
        ..KernelRun::new(
            Kernel::V6_1,
            [
                program.as_os_str(),
                "--exact".as_ref(),
                step.as_ref(),
                "--nocapture".as_ref(),
            ],
        )
    };
    let (status, output) = run.output().unwrap();
    assert!(status == 0 && output.contains("1 passed"), "{output}");
}

/// A file as its QEMU has it open, and the volume.
struct Node {
    qemu: File,
    volume: Volume,
}

fn node(path: PathBuf, writable: bool) -> Node {
    let qemu = OpenOptions::new()
        .read(true)
        .write(writable)
        .open(&path)
        .unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    let volume = Volume::open(own, &path).unwrap();
    Node { qemu, volume }
}

/// What QEMU does: a read lock on one byte of its own open file.
fn lock(file: &File, byte: i64) {
    let lock = libc::flock {
        l_type: libc::F_RDLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
}

/// Runs by itself only where the two mounts are.
#[test]
fn steps_on_two_mounts() {
    let Some(mounts) = std::env::var_os(MOUNTS) else {
        return;
    };
    let (a, b) = mounts.to_str().unwrap().split_once(',').unwrap();
    let source = node(Path::new(a).join("disk"), true);
    let destination = node(Path::new(b).join("disk"), false);
    let twin = node(Path::new(b).join("twin"), false);
    assert_ne!(
        source.volume.file_number(),
        destination.volume.file_number(),
        "one client's cache is no two nodes"
    );

    source.volume.mark(Side::Source, SESSION).unwrap();
    assert!(destination.volume.is_marked(Side::Source, SESSION).unwrap());
    assert!(!twin.volume.is_marked(Side::Source, SESSION).unwrap());
    destination.volume.mark(Side::Destination, SESSION).unwrap();
    assert!(source.volume.is_marked(Side::Destination, SESSION).unwrap());

    // A second migration, from another node: nobody there can say which process has the first.
    let second = node(Path::new(b).join("disk"), false);
    let error = second.volume.mark(Side::Source, SESSION + 1).unwrap_err();
    assert!(matches!(error, VolumeError::Migrating { .. }), "{error}");

    // QEMU's own locks, and those of somebody else's QEMU.
    assert!(!source.volume.has_other_image_user().unwrap());
    for byte in [100, 101, 201, 203] {
        lock(&source.qemu, byte);
    }
    assert_eq!(source.volume.image_locks().unwrap(), ImageLocks::SoleWriter);
    assert!(!source.volume.has_other_image_user().unwrap());
    lock(&second.qemu, 100);
    assert!(source.volume.has_other_image_user().unwrap());

    // Everything is given up by closing it.
    drop((source, second));
    assert!(!destination.volume.is_marked(Side::Source, SESSION).unwrap());
    destination.volume.stand_in().unwrap();
    destination.volume.stand_down();
}
