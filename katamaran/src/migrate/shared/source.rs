//! The source's side: find the VM's volumes, hold them, and settle with the destination that they are the
//! same.

use std::time::Instant;

use crate::config::SourceConfig;
use crate::deadline;
use crate::migrate::error::{MigrateError, chain};
use crate::migrate::message::{Reply, Request};
use crate::migrate::node::Node;
use crate::migrate::rollback::UndoStack;
use crate::migrate::source::Peer;
use crate::session_id::SessionId;
use crate::volume::reservation::Registered;
use crate::volume::{ImageLocks, Side, Volume, VolumeError};

use super::drives::{Drive, Medium, drives};
use super::held::{self, Held, HeldVolume};
use super::report::{Fence, Proof};
use super::wire::{Place, SharedAnswer, SharedFinding, SharedOffer, SharedVolume};

/// Makes sure that both sides have the same volumes, and nobody else. Refuses with all problems at once.
pub(crate) async fn attach(
    config: &SourceConfig,
    session: SessionId,
    node: &Node,
    peer: &Peer,
    undo: &mut UndoStack,
) -> Result<Held, MigrateError> {
    let all = drives(&node.qmp).await?;
    let writable: Vec<Drive> = all.into_iter().filter(|drive| drive.writable).collect();
    vouched_for_drives_exist(&config.trusted_volumes, &writable)?;
    let mut held = Held::default();
    if writable.is_empty() {
        return Ok(held);
    }
    let undone = held.clone();
    undo.cleanup("locks and keys on shared volumes", move || undone.release());
    let pid = node.qemu_pid;
    let problems = held
        .visit("a look at the VM's volumes", move |volumes| {
            take_hold(volumes, &writable, pid, session)
        })
        .await?;
    refuse(problems)?;

    let place = Place::here(pid);
    let offered = place.clone();
    let offer = held
        .visit("a look at the VM's volumes", |volumes| SharedOffer {
            place: offered,
            volumes: volumes.iter().map(offer).collect(),
        })
        .await?;
    let asked = "compare the shared volumes";
    let answer = match peer
        .ask(asked, Request::Attach(offer), deadline::ATTACH)
        .await?
    {
        Reply::Attached(answer) => answer,
        _ => return Err(MigrateError::OutOfStep { what: "Attach" }),
    };
    held.since = Some(Instant::now());
    let trusted = config.trusted_volumes.clone();
    let problems = held
        .visit("a second look at the VM's volumes", move |volumes| {
            settle(volumes, &answer, &place, session, &trusted)
        })
        .await?;
    if let Err(refused) = refuse(problems) {
        let reason = chain(&refused);
        if let Err(error) = peer
            .ask(
                "abort",
                Request::Abort { reason, nic: 0 },
                deadline::REQUEST,
            )
            .await
        {
            tracing::debug!(error = chain(&error), "the destination was not told why");
        }
        return Err(refused);
    }
    for volume in held.report(false) {
        tracing::info!(
            drive = volume.drive,
            path = volume.path,
            proof = volume.proof.as_str(),
            fence = volume.fence.as_str(),
            "shared volume"
        );
    }
    Ok(held)
}

/// COMMIT may follow only if the source's QEMU has no right to write any more; katamaran's stand-in gives up
/// with it, for the destination's QEMU will want it.
pub(crate) async fn must_have_let_go(held: &Held) -> Result<(), MigrateError> {
    if held.is_empty() {
        return Ok(());
    }
    let writing = held
        .visit("a last look at the VM's volumes", |volumes| {
            held::stand_down(volumes);
            still_writing(volumes)
        })
        .await?;
    match writing? {
        None => Ok(()),
        Some(volume) => Err(MigrateError::StillWriting {
            who: "the source's QEMU",
            volume,
        }),
    }
}

/// A volume that QEMU still has the right to write to, or may have.
pub(super) fn still_writing(volumes: &[HeldVolume]) -> Result<Option<String>, MigrateError> {
    for held in volumes {
        let Some(volume) = &held.volume else { continue };
        match volume.image_locks() {
            Ok(ImageLocks::SoleWriter | ImageLocks::SharedWriter) => return Ok(Some(held.name())),
            Ok(ImageLocks::NotWriting | ImageLocks::Nothing) => {}
            Err(source) => return Err(MigrateError::Volume(Box::new(source))),
        }
    }
    Ok(None)
}

pub(super) fn refuse(problems: Vec<String>) -> Result<(), MigrateError> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(MigrateError::Refused { problems })
    }
}

fn vouched_for_drives_exist(trusted: &[String], drives: &[Drive]) -> Result<(), MigrateError> {
    let known = |name: &String| drives.iter().any(|drive| drive.id == *name);
    let ids: Vec<&str> = drives.iter().map(|drive| drive.id.as_str()).collect();
    let unknown = trusted.iter().filter(|name| !known(name));
    refuse(
        unknown
            .map(|name| {
                format!(
                    "--trust-shared-volume {name}: the VM has no such writable drive (it has: {})",
                    ids.join(", ")
                )
            })
            .collect(),
    )
}

/// Opens, locks and registers. Problems are what no user can vouch for.
pub(super) fn take_hold(
    volumes: &mut Vec<HeldVolume>,
    drives: &[Drive],
    pid: Option<i32>,
    session: SessionId,
) -> Vec<String> {
    let mut problems = Vec::new();
    for drive in drives {
        let mut held = HeldVolume::new(drive);
        match open(drive, pid) {
            Err(doubt) => held.doubt = Some(doubt),
            Ok(volume) => {
                held.identity = volume.device_identity();
                held.volume = Some(volume);
                let twin = volumes.iter().find(|other| other.number() == held.number());
                let taken = match twin {
                    Some(twin) => Err(format!("it is the same volume as {}", twin.name())),
                    None => claim(&mut held, session).map_err(|error| chain(&error)),
                };
                if let Err(problem) = taken {
                    problems.push(format!("{}: {problem}", held.name()));
                }
            }
        }
        volumes.push(held);
    }
    problems
}

/// The volume behind a drive, or why it can't be looked at.
pub(super) fn open(drive: &Drive, pid: Option<i32>) -> Result<Volume, String> {
    let Medium::Path(path) = &drive.medium else {
        return Err(format!(
            "QEMU reaches it by itself ({}), where katamaran can't look",
            drive.medium.name()
        ));
    };
    let pid = pid.ok_or("QEMU's process can't be told from its QMP socket")?;
    Volume::open(pid, path).map_err(|error| chain(&error))
}

fn claim(held: &mut HeldVolume, session: SessionId) -> Result<(), VolumeError> {
    let Some(volume) = &held.volume else {
        return Ok(());
    };
    match volume.mark(Side::Source, session.0) {
        Ok(()) => {
            held.marked = true;
            if volume.has_other_image_user()? {
                return Err(VolumeError::ForeignLock {
                    path: volume.path().to_owned(),
                    what: "bytes 100-204 (another QEMU, or one of its tools)".to_owned(),
                });
            }
        }
        Err(error @ VolumeError::NoLocks { .. }) => held.doubt = Some(chain(&error)),
        Err(error) => return Err(error),
    }
    if volume.device_number().is_some() {
        match volume.register(Side::Source, session.0, &[])? {
            Registered::Yes(registration) => held.registration = Some(registration),
            Registered::Unsupported(why) => {
                tracing::debug!(drive = held.drive, why, "no persistent reservations");
            }
        }
    }
    Ok(())
}

pub(super) fn offer(held: &HeldVolume) -> SharedVolume {
    SharedVolume {
        drive: held.drive.clone(),
        path: held.path.clone(),
        number: held.number(),
        marked: held.marked,
        identity: held.identity.clone(),
        key: held.key(),
    }
}

/// What both sides have found, put together.
pub(super) fn settle(
    volumes: &mut [HeldVolume],
    answer: &SharedAnswer,
    place: &Place,
    session: SessionId,
    trusted: &[String],
) -> Vec<String> {
    if volumes.len() != answer.volumes.len() {
        return vec!["the destination answered for other drives than it was asked about".into()];
    }
    let mut problems = Vec::new();
    let peers = place.met_here(&answer.place);
    for (held, finding) in volumes.iter_mut().zip(&answer.volumes) {
        if let Err(problem) = settle_one(held, finding, session, &peers) {
            problems.push(format!("{}: {problem}", held.name()));
        } else if held.proof == Proof::Unproven && !trusted.contains(&held.drive) {
            problems.push(format!(
                "{}: it can't be proven that the destination has the same volume open ({} there): {}. If you know that it \
                 has, pass --trust-shared-volume {}; if it has not, the VM's data is destroyed",
                held.name(),
                finding.path,
                held.doubt.as_deref().unwrap_or("no reason is known"),
                held.drive
            ));
        }
    }
    problems
}

fn settle_one(
    held: &mut HeldVolume,
    finding: &SharedFinding,
    session: SessionId,
    peers: &[i32],
) -> Result<(), String> {
    let told = |error: VolumeError| chain(&error);
    held.peer_key = finding.key;
    held.proof = finding.proof;
    if held.doubt.is_none() {
        held.doubt.clone_from(&finding.doubt);
    }
    // A node that has the device twice can't be told apart by its key.
    if finding.key.is_none()
        && let Some(registration) = held.registration.take()
    {
        registration.release().map_err(told)?;
    }
    let Some(volume) = &held.volume else {
        return Ok(());
    };
    // The proof is worth something both ways only.
    if held.proof == Proof::Locks
        && !volume
            .is_marked(Side::Destination, session.0)
            .map_err(told)?
    {
        held.proof = Proof::Unproven;
        held.doubt = Some("the destination's lock is not seen here".to_owned());
    }
    if held.proof == Proof::ReservationKeys {
        let keys = volume.registered_keys().unwrap_or_default();
        if !finding.key.is_some_and(|key| keys.contains(&key)) {
            return Err("the key that the destination has registered with its device is not seen on this one: they are not \
                        the same device"
                .to_owned());
        }
    }
    let writers = volume.other_writers(peers).map_err(told)?;
    if !writers.is_empty() {
        return Err(format!(
            "somebody else has it open for writing: {}",
            writers.join("; ")
        ));
    }
    let locks = volume.image_locks().map_err(told)?;
    held.fence = fence(held.proof, locks, held.registration.is_some());
    match (held.fence, &held.registration) {
        (Fence::KatamaranLocks, _) => volume.stand_in().map_err(told),
        (Fence::Reservation, Some(registration)) => registration.reserve().map_err(told),
        _ => Ok(()),
    }
}

/// What can keep others from writing. Image locks are worth something where both sides see them.
fn fence(proof: Proof, locks: ImageLocks, registered: bool) -> Fence {
    let shared = matches!(proof, Proof::Locks | Proof::SameDevice);
    match locks {
        _ if registered => Fence::Reservation,
        ImageLocks::SoleWriter | ImageLocks::NotWriting if shared => Fence::ImageLocks,
        ImageLocks::Nothing if shared => Fence::KatamaranLocks,
        _ => Fence::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_fence_that_there_is_is_taken() {
        let cases = [
            (
                Proof::ReservationKeys,
                ImageLocks::SoleWriter,
                true,
                Fence::Reservation,
            ),
            (
                Proof::Locks,
                ImageLocks::SoleWriter,
                false,
                Fence::ImageLocks,
            ),
            (
                Proof::Locks,
                ImageLocks::Nothing,
                false,
                Fence::KatamaranLocks,
            ),
            // A QEMU that lets others write would be locked out itself.
            (Proof::Locks, ImageLocks::SharedWriter, false, Fence::None),
            // Locks of a device node reach no other node.
            (
                Proof::DeviceIdentity,
                ImageLocks::SoleWriter,
                false,
                Fence::None,
            ),
            (Proof::Unproven, ImageLocks::Nothing, false, Fence::None),
        ];
        for (proof, locks, registered, expected) in cases {
            assert_eq!(fence(proof, locks, registered), expected, "{proof:?}");
        }
    }

    #[test]
    fn a_vouched_for_drive_that_is_none_is_told_with_those_there_are() {
        let drive = Drive {
            id: "disk0".into(),
            medium: Medium::Other("rbd".into()),
            writable: true,
        };
        let drives = [drive];
        assert!(vouched_for_drives_exist(&["disk0".into()], &drives).is_ok());
        let error = vouched_for_drives_exist(&["disk9".into()], &drives).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("disk9") && text.contains("disk0"), "{text}");
    }

    #[test]
    fn what_katamaran_cannot_look_at_is_a_doubt_and_not_a_problem() {
        let drive = Drive {
            id: "disk0".into(),
            medium: Medium::Other("rbd".into()),
            writable: true,
        };
        let mut volumes = Vec::new();
        let problems = take_hold(&mut volumes, &[drive], Some(1), SessionId(1));
        assert_eq!(problems, Vec::<String>::new());
        assert!(volumes[0].doubt.as_ref().unwrap().contains("rbd"));
        let answer = SharedAnswer {
            place: Place::here(None),
            volumes: vec![SharedFinding {
                drive: "disk0".into(),
                path: "rbd".into(),
                proof: Proof::Unproven,
                doubt: None,
                marked: false,
                key: None,
            }],
        };
        let place = Place::here(None);
        let problems = settle(&mut volumes, &answer, &place, SessionId(1), &[]);
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}")
        };
        assert!(problem.contains("--trust-shared-volume disk0"), "{problem}");
        let trusted = ["disk0".to_owned()];
        let problems = settle(&mut volumes, &answer, &place, SessionId(1), &trusted);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(volumes[0].fence, Fence::None);
    }
}
