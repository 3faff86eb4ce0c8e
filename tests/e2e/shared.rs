//! A disk that both nodes have open: it is the same one, it has one writer, and nothing of that is left.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use katamaran::volume::{Side, Volume};
use katamaran_tests::lab::{LabConfig, Node, QemuVersion, Start};
use katamaran_tests::run::{
    DiskLoad, Ended, Migration, MigrationOptions, Role, Stage, StageOptions, Storage, TrafficSpec,
    settle,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::{major, minor};
use serde_json::Value;

use crate::support::{all, both, number, report, require};

const DRIVE: &str = "drive-virtio-disk0";
/// katamaran's own bytes begin there; QEMU's are 100 to 204.
const OURS: u64 = 0x6a << 56;
/// A copy that takes some seconds.
const SLOWLY: &str = "--max-bandwidth=25M";

fn stage(qemu: QemuVersion) -> Stage {
    Stage::set(StageOptions {
        storage: Storage::Shared(64),
        traffic: TrafficSpec {
            pps_v4: 200,
            disk: Some(DiskLoad {
                rate: 100,
                blocks: 64,
            }),
            ..TrafficSpec::default()
        },
        ..StageOptions::new(qemu, 200)
    })
    .unwrap()
}

fn image(stage: &Stage) -> PathBuf {
    stage.drives[0][0].clone()
}

/// The bytes of an image that anybody on this machine holds OFD locks on, by their first ones.
fn locked(image: &Path) -> Vec<u64> {
    let file = std::fs::metadata(image).unwrap();
    let device = (major(file.dev()), minor(file.dev()));
    let inode = format!("{:02x}:{:02x}:{}", device.0, device.1, file.ino());
    let table = std::fs::read_to_string("/proc/locks").unwrap();
    let mut starts: Vec<u64> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() == 8 && words[1] == "OFDLCK" && words[5] == inode)
        .map(|words| words[6].parse().unwrap())
        .collect();
    starts.sort_unstable();
    starts
}

/// What katamaran itself holds.
fn marks(image: &Path) -> Vec<u64> {
    let mut marks = locked(image);
    marks.retain(|start| *start >= OURS);
    marks
}

fn options(flags: &[&str]) -> MigrationOptions {
    MigrationOptions {
        source_args: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..MigrationOptions::default()
    }
}

fn migrate(stage: &mut Stage, flags: &[&str]) -> Ended {
    let migration = Migration::begin(stage, &options(flags)).unwrap();
    migration.end().unwrap().0
}

/// The VM runs on A with its image locked by its QEMU, and katamaran holds nothing.
#[track_caller]
fn assert_on_a(stage: &mut Stage, ended: &Ended) {
    assert_eq!(ended.leaks, Vec::<String>::new(), "{}", both(ended));
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(ended));
    let client = stage.client.as_ref().unwrap();
    client.wait_for_more(50).unwrap();
    let locked = locked(&image(stage));
    assert!(
        locked.iter().all(|start| (100..=204).contains(start)) && !locked.is_empty(),
        "{locked:?}\n{}",
        both(ended)
    );
}

/// Both sides refused with exit 2, told each of `words`, and changed nothing.
#[track_caller]
fn assert_refused(stage: &mut Stage, ended: &Ended, words: &[&str]) {
    for side in [&ended.source, &ended.dest] {
        assert_eq!(side.status, Some(2), "{}", both(ended));
        assert_eq!(report(side)["outcome"], "refused", "{}", both(ended));
    }
    let error = report(&ended.source)["error"].as_str().unwrap();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert_on_a(stage, ended);
    let status = stage.qmp_b.command("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "inmigrate", "{}", both(ended));
}

fn moves_with_its_disk(qemu: QemuVersion) {
    let mut stage = stage(qemu);
    let image = image(&stage);
    let mut migration = Migration::begin(&mut stage, &options(&[SLOWLY])).unwrap();
    migration
        .look_until_logged(Role::Source, "RAM: pass 1")
        .unwrap();
    let held = marks(&image);
    assert_eq!(held.len(), 2, "one lock of each side: {held:x?}");
    let (ended, timeline) = migration.end().unwrap();
    assert_eq!(marks(&image), Vec::<u64>::new(), "{}", both(&ended));
    let run = settle(&mut stage, ended, &timeline).unwrap();
    for side in [&run.source, &run.dest] {
        let side = side.as_ref().unwrap();
        assert_eq!(side.status, Some(0), "{}", all(&run));
        let volume = &report(side)["shared_volumes"][0];
        assert_eq!(volume["drive"], DRIVE, "{}", all(&run));
        assert_eq!(volume["proof"], "locks", "{}", all(&run));
        assert_eq!(volume["fence"], "image-locks", "{}", all(&run));
        let attached = number(report(side), "/shared_volumes/0/attached_ms");
        assert!(attached > 100.0 && attached < run.total_ms, "{attached}");
    }
    let disk = run.client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{disk:?}\n{}", all(&run));
    assert_eq!(run.leaks, Vec::<String>::new(), "{}", all(&run));
    // Without it, the QEMU on B would have locked the image before COMMIT.
    let capabilities = stage
        .qmp_b
        .command("query-migrate-capabilities", Value::Null)
        .unwrap();
    let late = serde_json::json!({"capability": "late-block-activate", "state": true});
    assert!(
        capabilities.as_array().unwrap().contains(&late),
        "{capabilities}"
    );
    // The QEMU on B is the one that writes now, and has locked the image for that.
    let locked = locked(&image);
    assert!(locked.contains(&201), "{locked:?}\n{}", all(&run));
}

#[test]
fn the_vm_moves_with_its_shared_disk_and_every_acknowledged_write_on_qemu_7_2() {
    require!(Root, Bpf, Lab);
    moves_with_its_disk(QemuVersion::V7_2);
}

#[test]
fn the_vm_moves_with_its_shared_disk_and_every_acknowledged_write_on_qemu_10_0() {
    require!(Root, Bpf, Lab);
    moves_with_its_disk(QemuVersion::V10_0);
}

/// Puts a QEMU on B that has `drive` for V's disk.
fn renew_guest_b(stage: &mut Stage, drive: &Path) {
    stage.guest_b.process().kill();
    stage.guest_b = stage
        .lab
        .start_guest(Node::B, Start::Incoming, &[drive])
        .unwrap();
    stage.qmp_b = stage.guest_b.qmp().unwrap();
}

#[test]
fn a_shared_disk_that_is_not_safe_is_refused_and_a_safe_one_moves() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let image = image(&stage);

    // Another image of the same name, size and content.
    let elsewhere = stage.lab.dir().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let twin = elsewhere.join(image.file_name().unwrap());
    std::fs::copy(&image, &twin).unwrap();
    renew_guest_b(&mut stage, &twin);
    let ended = migrate(&mut stage, &["--trust-shared-volume", DRIVE]);
    assert_refused(&mut stage, &ended, &[DRIVE, "another file"]);
    renew_guest_b(&mut stage, &image);

    // A third one has it open for writing.
    let third = File::options().write(true).open(&image).unwrap();
    let ended = migrate(&mut stage, &[]);
    let pid = std::process::id().to_string();
    assert_refused(&mut stage, &ended, &["open for writing", &pid]);
    drop(third);

    // A third one holds an image lock, as a QEMU that reads does.
    let reader = File::open(&image).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&reader, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let ended = migrate_alone(&mut stage);
    assert!(ended.contains("another QEMU"), "{ended}");
    drop(reader);

    // Another migration of the same volume.
    let qemu = i32::try_from(stage.guest_a.process().pid()).unwrap();
    let other = Volume::open(qemu, &image).unwrap();
    other.mark(Side::Source, 0x77).unwrap();
    let ended = migrate_alone(&mut stage);
    for word in ["migrated already", "..00000000000077", &pid] {
        assert!(ended.contains(word), "{word:?} is not in {ended}");
    }
    drop(other);

    // A drive that there is none of.
    let ended = migrate_alone_with(&mut stage, &["--trust-shared-volume", "disk9"]);
    assert!(ended.contains("disk9") && ended.contains(DRIVE), "{ended}");

    let ended = migrate(&mut stage, &[]);
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    assert_eq!(marks(&image), Vec::<u64>::new(), "{}", both(&ended));
    let (client, silence) = stage.finish_traffic().unwrap();
    assert_eq!(silence, None, "{}", both(&ended));
    let disk = client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{disk:?}\n{}", both(&ended));
}

fn migrate_alone(stage: &mut Stage) -> String {
    migrate_alone_with(stage, &[])
}

/// A migration that the source refuses by itself, before the destination has anything to say about the
/// disks; returns why.
#[track_caller]
fn migrate_alone_with(stage: &mut Stage, flags: &[&str]) -> String {
    let ended = migrate(stage, flags);
    assert_eq!(ended.source.status, Some(2), "{}", both(&ended));
    assert_eq!(
        report(&ended.source)["outcome"],
        "refused",
        "{}",
        both(&ended)
    );
    let status = stage.qmp_a.command("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], true, "{}", both(&ended));
    report(&ended.source)["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_migration_that_takes_too_long_ends_on_the_source_and_gives_its_disk_up() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V7_2);
    let image = image(&stage);
    let flags = ["--max-bandwidth=1M", "--migration-timeout=30"];
    let ended = migrate(&mut stage, &flags);
    assert_eq!(ended.source.status, Some(1), "{}", both(&ended));
    let told = report(&ended.source);
    assert_eq!(told["outcome"], "timeout", "{}", both(&ended));
    let error = told["error"].as_str().unwrap();
    for word in [
        "--migration-timeout",
        "30 s",
        DRIVE,
        "runs on the source",
        "allow more time",
    ] {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    let attached = number(told, "/shared_volumes/0/attached_ms");
    assert!((30_000.0..35_000.0).contains(&attached), "{attached}");
    assert!(ended.took < Duration::from_secs(45), "{:?}", ended.took);
    assert_on_a(&mut stage, &ended);
    assert_eq!(marks(&image), Vec::<u64>::new(), "{}", both(&ended));
    let (client, _) = stage.finish_traffic().unwrap();
    let disk = client.disk.as_ref().unwrap();
    assert!(disk.is_intact(), "{disk:?}\n{}", both(&ended));
}

#[test]
fn a_cancelled_migration_and_a_killed_katamaran_give_the_disk_up() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let image = image(&stage);
    for (role, signal) in [
        (Role::Source, Signal::SIGINT),
        (Role::Dest, Signal::SIGTERM),
        (Role::Dest, Signal::SIGKILL),
    ] {
        renew_guest_b(&mut stage, &image);
        let mut migration = Migration::begin(&mut stage, &options(&[SLOWLY])).unwrap();
        migration
            .look_until_logged(Role::Source, "RAM: pass 1")
            .unwrap();
        assert_eq!(marks(&image).len(), 2);
        migration.side(role).process().signal(signal).unwrap();
        let (mut ended, _) = migration.end().unwrap();
        assert_ne!(ended.source.status, Some(0), "{}", both(&ended));
        if signal == Signal::SIGKILL {
            // Nobody was left to clean up on B.
            ended.leaks.clear();
            let session = report(&ended.source)["session"].as_str().unwrap();
            for dir in [
                format!("/sys/fs/bpf/katamaran/{session}"),
                format!("/run/katamaran/{session}-destination"),
            ] {
                std::fs::remove_dir_all(dir).ok();
            }
        }
        assert_on_a(&mut stage, &ended);
        assert_eq!(marks(&image), Vec::<u64>::new(), "{}", both(&ended));
    }
    let (client, _) = stage.finish_traffic().unwrap();
    assert!(client.disk.as_ref().unwrap().is_intact(), "{client:?}");
}

#[test]
fn a_qemu_that_does_not_lock_has_katamaran_lock_for_it() {
    require!(Root, Bpf, Lab);
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let drive = format!(
        "file={},format=raw,if=none,id={DRIVE},file.locking=off",
        image.display()
    );
    let device = format!("virtio-blk-pci,drive={DRIVE},id=virtio-disk0");
    let args = ["-drive", &drive, "-device", &device];
    let mut stage = Stage::set(StageOptions {
        lab: LabConfig {
            extra_qemu_args: args.map(str::to_owned).to_vec(),
            ..LabConfig::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    assert_eq!(locked(&image), Vec::<u64>::new());
    let mut migration = Migration::begin(&mut stage, &options(&[SLOWLY])).unwrap();
    migration
        .look_until_logged(Role::Source, "RAM: pass 1")
        .unwrap();
    let held = locked(&image);
    assert!(held.contains(&201) && held.contains(&203), "{held:?}");
    let (ended, _) = migration.end().unwrap();
    for side in [&ended.source, &ended.dest] {
        assert_eq!(side.status, Some(0), "{}", both(&ended));
        let volume = &report(side)["shared_volumes"][0];
        assert_eq!(volume["fence"], "katamaran-locks", "{}", both(&ended));
    }
    assert_eq!(locked(&image), Vec::<u64>::new(), "{}", both(&ended));
}

/// What katamaran relies on: with `late-block-activate`, nobody holds the image from the end of a migration
/// until one of the two QEMUs is told to run.
fn nobody_writes_in_between(qemu: QemuVersion) {
    let mut stage = stage(qemu);
    let image = image(&stage);
    let socket = stage.lab.dir().join("ram");
    let uri = format!("unix:{}", socket.display());
    let capability = serde_json::json!({
        "capabilities": [{"capability": "late-block-activate", "state": true}]
    });
    let uri = serde_json::json!({ "uri": uri });
    let [a, b] = [&mut stage.qmp_a, &mut stage.qmp_b];
    b.command("migrate-set-capabilities", capability).unwrap();
    b.command("migrate-incoming", uri.clone()).unwrap();
    a.command("migrate", uri).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for qmp in [a, b] {
        while qmp.command("query-migrate", Value::Null).unwrap()["status"] != "completed" {
            assert!(Instant::now() < deadline, "not completed");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(locked(&image), Vec::<u64>::new());
    // The VM can be taken back.
    stage.guest_b.process().kill();
    stage.qmp_a.command("cont", Value::Null).unwrap();
    assert!(locked(&image).contains(&201));
    let client = stage.client.as_ref().unwrap();
    client.wait_for_more(50).unwrap();
}

#[test]
fn nobody_writes_between_the_end_of_a_migration_and_cont_on_qemu_7_2() {
    require!(Root, Bpf, Lab);
    nobody_writes_in_between(QemuVersion::V7_2);
}

#[test]
fn nobody_writes_between_the_end_of_a_migration_and_cont_on_qemu_10_0() {
    require!(Root, Bpf, Lab);
    nobody_writes_in_between(QemuVersion::V10_0);
}

/// A loop device, detached on drop.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn on(file: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status()
            .ok();
    }
}

#[test]
fn a_block_device_moves_and_one_with_a_second_writer_is_refused() {
    require!(Root, Bpf, Lab);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk.raw");
    File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let device = LoopDevice::on(&file);
    let drive = format!("file={},format=raw,if=none,id={DRIVE}", device.0.display());
    let front = format!("virtio-blk-pci,drive={DRIVE},id=virtio-disk0");
    let args = ["-drive", &drive, "-device", &front];
    let mut stage = Stage::set(StageOptions {
        lab: LabConfig {
            extra_qemu_args: args.map(str::to_owned).to_vec(),
            ..LabConfig::default()
        },
        ..StageOptions::default()
    })
    .unwrap();
    let second = File::options().write(true).open(&device.0).unwrap();
    let refused = migrate_alone(&mut stage);
    assert!(refused.contains("open for writing"), "{refused}");
    drop(second);
    // A source's QEMU that is kept keeps the volume, too, and that is said.
    let ended = migrate(&mut stage, &["--source-vm", "keep"]);
    for side in [&ended.source, &ended.dest] {
        assert_eq!(side.status, Some(0), "{}", both(&ended));
        let volume = &report(side)["shared_volumes"][0];
        assert_eq!(volume["proof"], "same-device", "{}", both(&ended));
        assert_eq!(volume["fence"], "image-locks", "{}", both(&ended));
    }
    let told = report(&ended.source);
    assert_eq!(told["shared_volumes"][0]["attached_ms"], Value::Null);
    let warnings = told["warnings"].to_string();
    assert!(warnings.contains("still has drive"), "{warnings}");
}
