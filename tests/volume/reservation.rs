//! Persistent reservations on a device with several paths, each of which is a node to it.
//!
//! `KATAMARAN_PR_DEVICES` names three: the source's, the destination's and a stranger's. Their first block is
//! overwritten. Without it, the test runs under the lab's other kernel, on three disks of that kernel's own SCSI
//! target with one backstore behind them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use katamaran::volume::reservation::{Registered, Registration, key};
use katamaran::volume::{Side, Volume, VolumeError};
use katamaran_tests::lab::{Kernel, KernelRun};
use katamaran_tests::need::{self, Need};

const SESSION: u64 = 0x1122_3344_5566_7788;

/// One path to the device: open as by QEMU, and as a volume.
struct Node {
    disk: File,
    volume: Volume,
}

impl Node {
    fn open(path: &Path) -> Self {
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let volume = Volume::open(own, path).unwrap();
        Self { disk, volume }
    }

    /// Writes one block past the page cache.
    fn write(&self) -> io::Result<()> {
        let mut memory = vec![0x5a_u8; 8192];
        let at = memory.as_ptr().align_offset(4096);
        let block = &mut memory[at..at + 4096];
        self.disk.write_all_at(block, 0)
    }

    fn register(&self, side: Side, session: u64, expected: &[u64]) -> Registration {
        match self.volume.register(side, session, expected).unwrap() {
            Registered::Yes(registration) => registration,
            Registered::Unsupported(why) => panic!("no reservations: {why}"),
        }
    }

    fn keys(&self) -> Vec<u64> {
        let mut keys = self.volume.registered_keys().unwrap();
        keys.sort_unstable();
        keys
    }
}

/// Three disks, sda to sdc, that are three ways to one RAM disk.
const SET_UP: &str = r#"
modprobe -a configfs sd_mod target_core_mod tcm_loop
mount -t configfs config /sys/kernel/config
mkdir -p /var/target/pr /etc/target/pr
target=/sys/kernel/config/target
disk=$target/core/rd_mcp_0/disk
mkdir -p $disk
echo rd_pages=2048 > $disk/control
echo 0123456789abcdef > $disk/wwn/vpd_unit_serial
echo 1 > $disk/enable
for node in 1 2 3; do
    group=$target/loopback/naa.500140500000000$node/tpgt_1
    mkdir -p $group/lun/lun_0
    echo naa.500140510000000$node > $group/nexus
    ln -s $disk $group/lun/lun_0/disk
done
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/sdc ] && break; sleep 1; done
"#;

const DEVICES: &str = "KATAMARAN_PR_DEVICES";

/// Runs one test of a test program where the three paths are.
#[track_caller]
fn run_under_the_other_kernel(program: &Path, test: &str) {
    let run = KernelRun {
        set_up: SET_UP,
        environment: &[(DEVICES, "/dev/sda,/dev/sdb,/dev/sdc")],
        deadline: Duration::from_secs(180),
        ..KernelRun::new(
            Kernel::V6_1,
            [
                program.as_os_str(),
                "--exact".as_ref(),
                test.as_ref(),
                "--nocapture".as_ref(),
            ],
        )
    };
    let (status, output) = run.output().unwrap();
    assert!(status == 0 && output.contains("1 passed"), "{output}");
}

#[test]
fn the_device_itself_refuses_whoever_may_not_write_at_each_step() {
    let test = "the_device_itself_refuses_whoever_may_not_write_at_each_step";
    if std::env::var_os(DEVICES).is_some() || !need::met(test, &[Need::Lab]) {
        return;
    }
    let program = std::env::current_exe().unwrap();
    run_under_the_other_kernel(&program, "reservation::steps_on_three_paths");
}

/// The library's own test of both sides at once. `cargo xtask test` says where its program is.
#[test]
fn both_sides_settle_on_a_device_with_reservations() {
    let test = "both_sides_settle_on_a_device_with_reservations";
    let Some(program) = std::env::var_os("KATAMARAN_LIB_TESTS") else {
        println!("SKIP {test}: KATAMARAN_LIB_TESTS does not name the library's tests");
        return;
    };
    if !need::met(test, &[Need::Lab]) {
        return;
    }
    run_under_the_other_kernel(
        Path::new(&program),
        "migrate::shared::device_tests::a_device_is_proven_the_same_by_its_keys_and_changes_hands_at_commit",
    );
}

/// Runs by itself only where the three paths are.
#[test]
fn steps_on_three_paths() {
    let Some(paths) = std::env::var_os(DEVICES) else {
        return;
    };
    let paths: Vec<PathBuf> = paths
        .to_str()
        .unwrap()
        .split(',')
        .map(PathBuf::from)
        .collect();
    let [source, destination, stranger] = paths.as_slice() else {
        panic!("{DEVICES} must name three devices")
    };
    let nodes = [source, destination, stranger].map(|path| Node::open(path));
    migrate(&nodes);
    abort(&nodes);
    crash(&nodes);
}

fn migrate([source, destination, stranger]: &[Node; 3]) {
    let identity = source.volume.device_identity();
    assert!(identity.is_some() && identity == destination.volume.device_identity());
    println!("identity: {identity:?}");
    assert_eq!(source.keys(), Vec::<u64>::new());
    let theirs = key(Side::Source, SESSION);
    let ours = key(Side::Destination, SESSION);

    // Attach.
    let held_by_source = source.register(Side::Source, SESSION, &[]);
    assert_eq!(destination.keys(), [theirs]);
    let held_by_destination = destination.register(Side::Destination, SESSION, &[theirs]);
    assert_eq!(source.keys(), [theirs, ours]);
    held_by_source.reserve().unwrap();
    source.write().unwrap();
    destination.write().unwrap();
    assert!(stranger.write().is_err(), "a stranger could write");

    // A second migration, from a third node.
    let second = stranger.volume.register(Side::Source, SESSION + 1, &[]);
    assert!(
        matches!(second, Err(VolumeError::Registered { .. })),
        "{second:?}"
    );
    assert_eq!(source.keys(), [theirs, ours]);

    // COMMIT.
    held_by_destination.take_over(theirs).unwrap();
    assert_eq!(source.keys(), [ours]);
    assert!(source.write().is_err(), "a zombie could write");
    destination.write().unwrap();

    // The end, the source first.
    held_by_source.release().unwrap();
    assert!(source.write().is_err());
    held_by_destination.release().unwrap();
    assert_eq!(source.keys(), Vec::<u64>::new());
    for node in [source, destination, stranger] {
        node.write().unwrap();
    }
}

fn abort([source, destination, stranger]: &[Node; 3]) {
    let theirs = key(Side::Source, SESSION);
    let held_by_source = source.register(Side::Source, SESSION, &[]);
    let held_by_destination = destination.register(Side::Destination, SESSION, &[theirs]);
    held_by_source.reserve().unwrap();
    held_by_destination.release().unwrap();
    assert!(destination.write().is_err());
    source.write().unwrap();
    held_by_source.release().unwrap();
    assert_eq!(source.keys(), Vec::<u64>::new());
    stranger.write().unwrap();
}

/// A katamaran that crashes leaves its key; its node can write, and its next migration takes the key over.
fn crash([source, _, stranger]: &[Node; 3]) {
    let left = source.register(Side::Source, SESSION, &[]);
    left.reserve().unwrap();
    drop(left);
    source.write().unwrap();
    let next = source.register(Side::Source, SESSION + 1, &[]);
    assert_eq!(source.keys(), [key(Side::Source, SESSION + 1)]);
    next.reserve().unwrap();
    source.write().unwrap();
    assert!(stranger.write().is_err());
    next.release().unwrap();
    assert_eq!(source.keys(), Vec::<u64>::new());
    stranger.write().unwrap();
}
