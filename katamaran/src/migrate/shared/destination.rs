//! The destination's side: whether what its QEMU has open is what the source has, and that QEMU does not
//! write before COMMIT.

use std::time::Instant;

use crate::migrate::error::{MigrateError, chain};
use crate::migrate::node::Node;
use crate::migrate::rollback::UndoStack;
use crate::session_id::SessionId;
use crate::volume::reservation::Registered;
use crate::volume::{ImageLocks, Side, Volume, VolumeError};

use super::drives::{Drive, drives};
use super::held::{Held, HeldVolume};
use super::report::{Fence, Proof};
use super::source::{open, refuse, still_writing};
use super::wire::{Number, Place, SharedAnswer, SharedFinding, SharedOffer, SharedVolume};

/// Compares the source's volumes with ours, and holds ours.
pub(crate) async fn attach(
    node: &Node,
    session: SessionId,
    offer: SharedOffer,
    undo: &mut UndoStack,
) -> Result<(SharedAnswer, Held), MigrateError> {
    let drives = drives(&node.qmp).await?;
    let mut held = Held::default();
    let undone = held.clone();
    undo.cleanup("locks and keys on shared volumes", move || undone.release());
    let pid = node.qemu_pid;
    let (findings, problems) = held
        .visit("a look at the VM's volumes", move |volumes| {
            let look = Look {
                session,
                pid,
                here: Place::here(pid),
                there: &offer.place,
            };
            look.at_all(volumes, &offer.volumes, &drives)
        })
        .await?;
    refuse(problems)?;
    held.since = Some(Instant::now());
    let answer = SharedAnswer {
        place: Place::here(pid),
        volumes: findings,
    };
    Ok((answer, held))
}

/// Before COMMIT our QEMU must have no right to write.
pub(crate) async fn must_not_write(held: &Held) -> Result<(), MigrateError> {
    if held.is_empty() {
        return Ok(());
    }
    let writing = held
        .visit("a look at the VM's volumes", |volumes| {
            still_writing(volumes)
        })
        .await?;
    match writing? {
        None => Ok(()),
        Some(volume) => Err(MigrateError::StillWriting {
            who: "the destination's QEMU",
            volume,
        }),
    }
}

/// COMMIT: the source's node loses its right to write before the VM runs here; `run` runs it. Whatever its
/// QEMU does not lock, katamaran does until the end.
pub(crate) async fn run_fenced<T>(
    held: &Held,
    run: impl Future<Output = Result<T, MigrateError>>,
) -> Result<T, MigrateError> {
    if held.is_empty() {
        return run.await;
    }
    held.visit("taking over reservations", |volumes| take_over(volumes))
        .await??;
    let ran = run.await?;
    if let Err(error) = held
        .visit("a look at image locks", |volumes| look_after(volumes))
        .await
    {
        tracing::warn!(error = chain(&error), "the fence was not looked at");
    }
    Ok(ran)
}

pub(super) fn take_over(volumes: &[HeldVolume]) -> Result<(), MigrateError> {
    for held in volumes {
        if let (Some(registration), Some(theirs)) = (&held.registration, held.peer_key) {
            registration
                .take_over(theirs)
                .map_err(|source| MigrateError::Volume(Box::new(source)))?;
        }
    }
    Ok(())
}

pub(super) fn look_after(volumes: &mut [HeldVolume]) {
    for held in volumes {
        let Some(volume) = &held.volume else { continue };
        let shared = matches!(held.proof, Proof::Locks | Proof::SameDevice);
        held.fence = match volume.image_locks() {
            _ if held.registration.is_some() => Fence::Reservation,
            Ok(ImageLocks::SoleWriter | ImageLocks::NotWriting) if shared => Fence::ImageLocks,
            Ok(ImageLocks::Nothing) if shared && volume.stand_in().is_ok() => Fence::KatamaranLocks,
            _ => Fence::None,
        };
    }
}

/// What a volume is compared by.
pub(super) struct Look<'a> {
    pub(super) session: SessionId,
    pub(super) pid: Option<i32>,
    pub(super) here: Place,
    pub(super) there: &'a Place,
}

/// What is found about one: a proof, or the reason why there is none.
type Found = Result<Proof, String>;

impl Look<'_> {
    pub(super) fn at_all(
        &self,
        volumes: &mut Vec<HeldVolume>,
        offered: &[SharedVolume],
        drives: &[Drive],
    ) -> (Vec<SharedFinding>, Vec<String>) {
        let (mut findings, mut problems) = (Vec::new(), Vec::new());
        for theirs in offered {
            let Some(drive) = drives.iter().find(|drive| drive.id == theirs.drive) else {
                let ids: Vec<&str> = drives.iter().map(|drive| drive.id.as_str()).collect();
                problems.push(format!(
                    "the source's drive {} is not a drive here (there are: {})",
                    theirs.drive,
                    ids.join(", ")
                ));
                continue;
            };
            let mut held = HeldVolume::new(drive);
            match open(drive, self.pid) {
                Err(doubt) => held.doubt = Some(doubt),
                Ok(volume) => {
                    if let Err(problem) = self.at_one(&mut held, &volume, theirs) {
                        problems.push(format!("{} here: {problem}", held.name()));
                    }
                    held.volume = Some(volume);
                }
            }
            findings.push(SharedFinding {
                drive: held.drive.clone(),
                path: held.path.clone(),
                proof: held.proof,
                doubt: held.doubt.clone(),
                marked: held.marked,
                key: held.key(),
            });
            volumes.push(held);
        }
        (findings, problems)
    }

    /// Errors are what no user can vouch for.
    fn at_one(
        &self,
        held: &mut HeldVolume,
        volume: &Volume,
        theirs: &SharedVolume,
    ) -> Result<(), String> {
        let told = |error: VolumeError| chain(&error);
        held.identity = volume.device_identity();
        held.peer_key = theirs.key;
        match self.compare(volume, held.identity.as_deref(), theirs)? {
            Ok(proof) => held.proof = proof,
            Err(doubt) => held.doubt = Some(doubt),
        }
        match volume.mark(Side::Destination, self.session.0) {
            Ok(()) => held.marked = true,
            Err(VolumeError::NoLocks { .. }) => {}
            Err(error) => return Err(told(error)),
        }
        if matches!(
            volume.image_locks().map_err(told)?,
            ImageLocks::SoleWriter | ImageLocks::SharedWriter
        ) {
            return Err(
                "QEMU has the right to write to it already: start it with `-incoming defer`"
                    .to_owned(),
            );
        }
        let peers = self.here.met_here(self.there);
        let writers = volume.other_writers(&peers).map_err(told)?;
        if !writers.is_empty() {
            return Err(format!(
                "somebody else has it open for writing: {}",
                writers.join("; ")
            ));
        }
        self.register(held, volume, theirs).map_err(told)?
    }

    /// Whether it is the source's volume; an error if it certainly is not.
    fn compare(
        &self,
        volume: &Volume,
        identity: Option<&str>,
        theirs: &SharedVolume,
    ) -> Result<Found, String> {
        let another = |why: String| {
            Err(format!(
                "it is not the volume that the source has open as {}: {why}",
                theirs.path
            ))
        };
        let one_kernel = self.here.shares_kernel_with(self.there);
        match (volume.file_number(), volume.device_number(), theirs.number) {
            (Some(_), _, Some(Number::BlockDevice { .. })) => {
                another("that is a block device, and this a file".to_owned())
            }
            (_, Some(_), Some(Number::File { .. })) => {
                another("that is a file, and this a block device".to_owned())
            }
            (Some((device, inode)), _, number) => {
                let seen = match volume.is_marked(Side::Source, self.session.0) {
                    Ok(seen) => seen,
                    Err(error @ VolumeError::NoLocks { .. }) => return Ok(Err(chain(&error))),
                    Err(error) => return Err(chain(&error)),
                };
                let differs = number.is_some_and(|number| number != Number::File { device, inode });
                if seen {
                    Ok(Ok(Proof::Locks))
                } else if one_kernel && differs {
                    another("it is another file".to_owned())
                } else {
                    Ok(Err(
                        "the lock that the source holds on its volume is not seen on this one, so that it is another volume, \
                         or its file system keeps locks to itself (nolock, local_lock)"
                            .to_owned(),
                    ))
                }
            }
            (_, Some(number), Some(Number::BlockDevice { number: other })) => {
                match (identity, theirs.identity.as_deref()) {
                    _ if one_kernel && number == other => Ok(Ok(Proof::SameDevice)),
                    (Some(ours), Some(other)) if ours == other => Ok(Ok(Proof::DeviceIdentity)),
                    (Some(ours), Some(other)) => {
                        another(format!("that is {other}, and this {ours}"))
                    }
                    (None, _) | (_, None) => Ok(Err(
                        "the device does not say which one it is, world-wide, on both nodes"
                            .to_owned(),
                    )),
                }
            }
            (_, _, None) => Ok(Err("the source can't look at its volume".to_owned())),
            (None, None, _) => Ok(Err("it is neither a file nor a block device".to_owned())),
        }
    }

    /// With reservations: the source's key must be seen through our path to the device, and ours registered.
    fn register(
        &self,
        held: &mut HeldVolume,
        volume: &Volume,
        theirs: &SharedVolume,
    ) -> Result<Result<(), String>, VolumeError> {
        let Some(key) = theirs.key else {
            return Ok(Ok(()));
        };
        // Through one and the same path, the device can't tell the two sides apart.
        if held.proof == Proof::SameDevice {
            return Ok(Ok(()));
        }
        let keys = volume.registered_keys();
        if let Some(keys) = &keys
            && !keys.contains(&key)
        {
            return Ok(Err(format!(
                "the key {key:#x} that the source has registered with its device is not seen on this one: they are not the \
                 same device"
            )));
        }
        match volume.register(Side::Destination, self.session.0, &[key])? {
            Registered::Yes(registration) => {
                if keys.is_some() && held.proof == Proof::DeviceIdentity {
                    held.proof = Proof::ReservationKeys;
                }
                held.registration = Some(registration);
                Ok(Ok(()))
            }
            // The source's reservation would keep this node from writing.
            Registered::Unsupported(why) => Ok(Err(format!(
                "the source can reserve it, this node can't: {why}"
            ))),
        }
    }
}
