//! Both sides on one device with persistent reservations, through two paths to it: each is a node to the device.
//!
//! Needs such paths, named by `KATAMARAN_PR_DEVICES` (see `tests/volume`, which has a kernel that makes them).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::destination::{Look, look_after, take_over};
use super::drives::{Drive, Medium};
use super::held::HeldVolume;
use super::report::{Fence, Proof};
use super::source::{offer, settle, take_hold};
use super::wire::{Place, SharedAnswer};
use crate::session_id::SessionId;

const SESSION: SessionId = SessionId(0x1122_3344_5566_7788);

/// The device as a QEMU has it open.
fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

fn can_write(disk: &File) -> bool {
    let mut memory = vec![0x5a_u8; 8192];
    let at = memory.as_ptr().align_offset(4096);
    disk.write_all_at(&memory.split_off(at)[..4096], 4096)
        .is_ok()
}

fn drive(path: &Path) -> Drive {
    Drive {
        id: "disk0".into(),
        medium: Medium::Path(path.into()),
        writable: true,
    }
}

fn give_up(volumes: &mut [HeldVolume]) {
    for held in volumes {
        held.volume = None;
        held.registration.take().unwrap().release().unwrap();
    }
}

#[test]
fn a_device_is_proven_the_same_by_its_keys_and_changes_hands_at_commit() {
    let Some(paths) = std::env::var_os("KATAMARAN_PR_DEVICES") else {
        println!("SKIP a_device_is_proven_..: KATAMARAN_PR_DEVICES names no devices");
        return;
    };
    let paths: Vec<PathBuf> = paths
        .to_str()
        .unwrap()
        .split(',')
        .map(PathBuf::from)
        .collect();
    let [on_source, on_destination] = [open(&paths[0]), open(&paths[1])];
    let pid = i32::try_from(std::process::id()).ok();
    let place = Place::here(pid);

    let (mut source, mut destination) = (Vec::new(), Vec::new());
    let problems = take_hold(&mut source, &[drive(&paths[0])], pid, SESSION);
    assert_eq!(problems, Vec::<String>::new());
    let offered: Vec<_> = source.iter().map(offer).collect();
    assert!(offered[0].key.is_some() && offered[0].identity.is_some());
    let look = Look {
        session: SESSION,
        pid,
        here: place.clone(),
        there: &place,
    };
    let drives = [drive(&paths[1])];
    let (volumes, problems) = look.at_all(&mut destination, &offered, &drives);
    assert_eq!(problems, Vec::<String>::new());
    let answer = SharedAnswer {
        place: place.clone(),
        volumes,
    };
    let problems = settle(&mut source, &answer, &place, SESSION, &[]);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        (source[0].proof, source[0].fence),
        (Proof::ReservationKeys, Fence::Reservation)
    );
    assert!(can_write(&on_source));

    take_over(&destination).unwrap();
    look_after(&mut destination);
    assert_eq!(destination[0].fence, Fence::Reservation);
    assert!(!can_write(&on_source) && can_write(&on_destination));
    give_up(&mut source);
    give_up(&mut destination);
    assert!(can_write(&on_source) && can_write(&on_destination));
}
