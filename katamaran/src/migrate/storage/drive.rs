//! Which drives a VM has, and whether both nodes have the same ones.

use serde::{Deserialize, Serialize};

use super::qemu_id;
use crate::qmp::command::BlockInfo;

/// The drive that is mirrored when none is named.
pub const DEFAULT_DRIVE: &str = "drive-virtio-disk0";

/// A drive, as one of the two nodes sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveDescription {
    /// As the user names it.
    pub id: String,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// The driver of the format, such as `raw`.
    pub format: String,
    pub read_only: bool,
    /// The id of the device that the guest sees it as, if it has one.
    pub device: Option<String>,
}

/// A drive of the QEMU on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive {
    pub(crate) description: DriveDescription,
    /// The node at its top.
    pub(crate) node: String,
}

/// The source's drives to mirror: those that were `named`, or the default one. A VM that has no drive it
/// can write to needs none.
///
/// That QEMU guessed a format (`raw` without a word about it on the command line) is not told over QMP;
/// see the advice in [`StorageError`](super::StorageError) for what comes of it.
///
/// # Errors
/// All that is wrong, each in a sentence.
pub(crate) fn choose(
    named: Option<&[String]>,
    disks: &[BlockInfo],
) -> Result<Vec<Drive>, Vec<String>> {
    let default = [DEFAULT_DRIVE.to_owned()];
    let ids = match named {
        Some(ids) => ids,
        None if writable(disks).next().is_none() => return Ok(Vec::new()),
        None => &default,
    };
    let mut problems = Vec::new();
    let drives = find_all(ids, disks, "", &mut problems);
    let forgotten = left_out(disks, ids);
    // Of a drive that was misspelt it is said already that it is not there.
    if !forgotten.is_empty() && drives.len() == ids.len() {
        problems.push(format!(
            "the VM can write to {}, which would be left behind: name all of its drives with --drive-id ({})",
            forgotten.join(", "),
            ids.iter()
                .map(String::as_str)
                .chain(forgotten.iter().copied())
                .collect::<Vec<_>>()
                .join(",")
        ));
    }
    finish(drives, problems)
}

/// The destination's drives for the source's: the same ids, sizes and formats, writable, none missing and
/// none that the source does not have.
///
/// # Errors
/// All that is wrong, each in a sentence.
pub(crate) fn compare(
    theirs: &[DriveDescription],
    named: Option<&[String]>,
    disks: &[BlockInfo],
) -> Result<Vec<Drive>, Vec<String>> {
    let ids: Vec<String> = theirs.iter().map(|d| d.id.clone()).collect();
    let mut problems = Vec::new();
    if let Some(named) = named {
        let mut both = [named.to_vec(), ids.clone()];
        both.iter_mut().for_each(|ids| ids.sort());
        if both[0] != both[1] {
            problems.push(format!(
                "--drive-id is {} on the source and {} here: give both nodes the same",
                list(&ids),
                list(named)
            ));
        }
    }
    let drives = find_all(&ids, disks, " on the destination", &mut problems);
    for drive in &drives {
        let ours = &drive.description;
        let Some(theirs) = theirs.iter().find(|d| d.id == ours.id) else {
            continue;
        };
        if theirs.virtual_size != ours.virtual_size {
            problems.push(format!(
                "drive {} has {} bytes on the source and {} here",
                ours.id, theirs.virtual_size, ours.virtual_size
            ));
        }
        if theirs.format != ours.format {
            problems.push(format!(
                "drive {} has format {} on the source and {} here: start both QEMUs with the same options",
                ours.id, theirs.format, ours.format
            ));
        }
        // The guest would find its disks exchanged.
        if let (Some(theirs), Some(device)) = (&theirs.device, &ours.device)
            && theirs != device
        {
            problems.push(format!(
                "drive {} is the guest's device {theirs} on the source and {device} here: start both QEMUs with the same options",
                ours.id
            ));
        }
    }
    let extra = left_out(disks, &ids);
    if !extra.is_empty() {
        problems.push(format!(
            "the VM has {} here, which the source does not mirror (it mirrors {})",
            extra.join(", "),
            list(&ids)
        ));
    }
    finish(drives, problems)
}

fn finish(drives: Vec<Drive>, problems: Vec<String>) -> Result<Vec<Drive>, Vec<String>> {
    if problems.is_empty() {
        Ok(drives)
    } else {
        Err(problems)
    }
}

/// Disks with a medium that the guest can write to.
fn writable(disks: &[BlockInfo]) -> impl Iterator<Item = &BlockInfo> {
    disks.iter().filter(|d| d.read_only() == Some(false))
}

/// Those that the guest can write to and none of `ids` names.
fn left_out<'a>(disks: &'a [BlockInfo], ids: &[String]) -> Vec<&'a str> {
    writable(disks)
        .filter(|disk| !ids.iter().any(|id| disk.is_called(id)))
        .map(BlockInfo::best_name)
        .collect()
}

fn find_all(
    ids: &[String],
    disks: &[BlockInfo],
    place: &str,
    problems: &mut Vec<String>,
) -> Vec<Drive> {
    let mut drives: Vec<Drive> = Vec::new();
    for id in ids {
        let drive = match find(id, disks, place) {
            Err(problem) => {
                problems.push(problem);
                continue;
            }
            Ok(drive) => drive,
        };
        let twin = |d: &&Drive| d.node == drive.node;
        let alike = |d: &&Drive| qemu_id(&d.description.id) == qemu_id(id);
        if let Some(twin) = drives.iter().find(twin) {
            let twin = &twin.description.id;
            problems.push(format!(
                "{twin} and {id} are the same drive{place}: name it once"
            ));
        } else if let Some(alike) = drives.iter().find(alike) {
            let alike = &alike.description.id;
            problems.push(format!(
                "{alike} and {id} differ in characters only that QEMU takes in no id{place}: use other names of these drives"
            ));
        } else {
            drives.push(drive);
        }
    }
    drives
}

fn find(id: &str, disks: &[BlockInfo], place: &str) -> Result<Drive, String> {
    let mut matches = disks.iter().filter(|disk| disk.is_called(id));
    let disk = match (matches.next(), matches.next()) {
        (Some(disk), None) => disk,
        (Some(_), Some(_)) => {
            return Err(format!("{id} names several drives{place}: use their nodes"));
        }
        (None, _) => {
            let known: Vec<&str> = disks.iter().map(BlockInfo::best_name).collect();
            return Err(match known.as_slice() {
                [] => format!("there is no drive {id}{place}: the VM has no drive at all"),
                known => format!(
                    "there is no drive {id}{place}: the VM has {}",
                    known.join(", ")
                ),
            });
        }
    };
    let (Some(node), Some(virtual_size), Some(format), Some(read_only)) = (
        disk.node_name(),
        disk.virtual_size(),
        disk.driver(),
        disk.read_only(),
    ) else {
        return Err(format!("drive {id} has no medium{place}"));
    };
    if read_only {
        return Err(format!(
            "drive {id} is read-only{place}: drives that the guest can't write to are not mirrored, leave it out of --drive-id"
        ));
    }
    Ok(Drive {
        description: DriveDescription {
            id: id.to_owned(),
            virtual_size,
            format: format.to_owned(),
            read_only,
            device: disk.device_id().map(str::to_owned),
        },
        node: node.to_owned(),
    })
}

fn list(ids: &[String]) -> String {
    match ids {
        [] => "nothing".to_owned(),
        ids => ids.join(","),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disk(device: &str, size: u64, format: &str, read_only: bool) -> BlockInfo {
        serde_json::from_value(json!({
            "device": device, "qdev": format!("/machine/peripheral/{device}-dev/virtio-backend"),
            "inserted": {
                "node-name": format!("#{device}"), "drv": format, "ro": read_only,
                "image": {"virtual-size": size},
            },
        }))
        .unwrap()
    }

    fn empty(device: &str) -> BlockInfo {
        serde_json::from_value(json!({"device": device, "qdev": device})).unwrap()
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn described(disks: &[BlockInfo], named: &[&str]) -> Vec<DriveDescription> {
        let named = ids(named);
        choose(Some(&named), disks)
            .unwrap()
            .into_iter()
            .map(|d| d.description)
            .collect()
    }

    #[test]
    fn a_vm_without_a_writable_drive_needs_none_unless_one_is_asked_for() {
        let disks = [empty("cd0"), disk("rom", 9, "raw", true)];
        assert_eq!(choose(None, &disks), Ok(vec![]));
        let problems = choose(Some(&ids(&[DEFAULT_DRIVE])), &disks).unwrap_err();
        assert!(
            problems[0].contains(DEFAULT_DRIVE) && problems[0].contains("cd0, rom"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_drive_that_would_be_left_behind_is_named_with_the_flag_that_takes_it_along() {
        let disks = [
            disk(DEFAULT_DRIVE, 9, "raw", false),
            disk("data", 9, "raw", false),
        ];
        let problems = choose(None, &disks).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].contains("--drive-id (drive-virtio-disk0,data)"),
            "{problems:?}"
        );
        let all = choose(Some(&ids(&["data-dev", DEFAULT_DRIVE])), &disks).unwrap();
        assert_eq!(all[0].node, "#data");
        assert_eq!(all[0].description.id, "data-dev");
    }

    #[test]
    fn a_drive_named_twice_read_only_or_without_medium_is_refused() {
        let disks = [
            disk("a", 9, "raw", false),
            disk("b", 9, "raw", true),
            empty("c"),
        ];
        let problems = choose(Some(&ids(&["a", "a-dev", "b", "c"])), &disks).unwrap_err();
        let text = problems.join("\n");
        for words in ["same drive", "b is read-only", "c has no medium"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn equal_drives_are_taken_in_the_sources_order() {
        let theirs = [disk("a", 9, "raw", false), disk("b", 7, "qcow2", false)];
        let ours = [disk("b", 7, "qcow2", false), disk("a", 9, "raw", false)];
        let found = compare(
            &described(&theirs, &["b", "a"]),
            Some(&ids(&["a", "b"])),
            &ours,
        );
        let nodes: Vec<String> = found.unwrap().into_iter().map(|d| d.node).collect();
        assert_eq!(nodes, ["#b", "#a"]);
    }

    #[test]
    fn drives_that_the_guest_would_find_exchanged_are_refused() {
        let theirs = [disk("a", 9, "raw", false), disk("b", 9, "raw", false)];
        let mut ours = theirs.clone();
        let device = ours[0].qdev.take();
        ours[0].qdev = std::mem::replace(&mut ours[1].qdev, device);
        let text = compare(&described(&theirs, &["a", "b"]), None, &ours)
            .unwrap_err()
            .join("\n");
        assert!(
            text.contains("drive a is the guest's device a-dev on the source and b-dev here"),
            "{text}"
        );
    }

    #[test]
    fn every_difference_is_told_at_once() {
        let theirs = [
            disk("a", 9, "raw", false),
            disk("b", 9, "raw", false),
            disk("c", 9, "raw", false),
        ];
        let ours = [
            disk("a", 8, "qcow2", false),
            disk("b", 9, "raw", true),
            disk("d", 9, "raw", false),
        ];
        let text = compare(
            &described(&theirs, &["a", "b", "c"]),
            Some(&ids(&["a"])),
            &ours,
        )
        .unwrap_err()
        .join("\n");
        for words in [
            "--drive-id is a,b,c on the source and a here",
            "a has 9 bytes on the source and 8 here",
            "a has format raw on the source and qcow2 here",
            "b is read-only on the destination",
            "no drive c on the destination",
            "the VM has d here",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
