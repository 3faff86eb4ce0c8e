//! What one side holds of the shared volumes: open files with locks, and keys registered with devices.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::migrate::error::{MigrateError, chain};
use crate::volume::Volume;
use crate::volume::reservation::Registration;

use super::aside::aside;
use super::drives::Drive;
use super::report::{Fence, Proof, SharedVolumeReport};
use super::wire::Number;

/// The shared volumes of a migration, as one side holds them. Cheap to clone: the undo step holds one, too.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    /// Locked while somebody works with them, which may hang: visited aside only.
    volumes: Arc<Mutex<Vec<HeldVolume>>>,
    /// What is known of them, never locked for long.
    known: Arc<Mutex<Vec<SharedVolumeReport>>>,
    /// Both sides are known to have them open since then.
    pub(super) since: Option<Instant>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct HeldVolume {
    pub(super) drive: String,
    pub(super) path: String,
    /// Absent where katamaran can't open it, and once everything is given up.
    pub(super) volume: Option<Volume>,
    /// Why nothing can be proven about it.
    pub(super) doubt: Option<String>,
    pub(super) marked: bool,
    pub(super) identity: Option<String>,
    pub(super) registration: Option<Registration>,
    /// The other side's key.
    pub(super) peer_key: Option<u64>,
    pub(super) proof: Proof,
    pub(super) fence: Fence,
}

impl HeldVolume {
    pub(super) fn new(drive: &Drive) -> Self {
        Self {
            drive: drive.id.clone(),
            path: drive.medium.name(),
            volume: None,
            doubt: None,
            marked: false,
            identity: None,
            registration: None,
            peer_key: None,
            proof: Proof::Unproven,
            fence: Fence::None,
        }
    }

    /// As a message names it.
    pub(super) fn name(&self) -> String {
        name(&self.drive, &self.path)
    }

    fn report(&self) -> SharedVolumeReport {
        SharedVolumeReport {
            drive: self.drive.clone(),
            path: self.path.clone(),
            proof: self.proof,
            identity: self.identity.clone(),
            fence: self.fence,
            attached_ms: None,
        }
    }

    pub(super) fn number(&self) -> Option<Number> {
        let volume = self.volume.as_ref()?;
        let file = volume.file_number();
        file.map(|(device, inode)| Number::File { device, inode })
            .or_else(|| {
                let number = volume.device_number()?;
                Some(Number::BlockDevice { number })
            })
    }

    pub(super) fn key(&self) -> Option<u64> {
        self.registration.as_ref().map(Registration::key)
    }
}

impl Held {
    /// The VM has no writable disk, or its disks are not shared.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.known).is_empty()
    }

    /// As a message names them.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.known)
            .iter()
            .map(|volume| name(&volume.drive, &volume.path))
            .collect()
    }

    /// Since when both sides have them open.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// For the report. `let_go` when this side has just seen one of the two let go of them.
    pub(crate) fn report(&self, let_go: bool) -> Vec<SharedVolumeReport> {
        let attached = self.since.filter(|_| let_go).map(|since| since.elapsed());
        let mut report = lock(&self.known).clone();
        for volume in &mut report {
            volume.attached_ms = attached.map(|attached| attached.as_secs_f64() * 1000.0);
        }
        report
    }

    /// Does something with the volumes, aside.
    pub(super) async fn visit<T: Send + 'static>(
        &self,
        what: &'static str,
        visit: impl FnOnce(&mut Vec<HeldVolume>) -> T + Send + 'static,
    ) -> Result<T, MigrateError> {
        let (volumes, known) = (self.volumes.clone(), self.known.clone());
        aside(what, move || {
            let mut volumes = lock(&volumes);
            let result = visit(&mut volumes);
            *lock(&known) = volumes.iter().map(HeldVolume::report).collect();
            result
        })
        .await
    }

    /// A QEMU that takes its VM back must not find katamaran in the way of its image locks.
    pub(crate) async fn stand_down(&self) {
        let stands = |volume: &SharedVolumeReport| volume.fence == Fence::KatamaranLocks;
        if !lock(&self.known).iter().any(stands) {
            return;
        }
        let stood = self.visit("giving up image locks", |volumes| stand_down(volumes));
        if let Err(error) = stood.await {
            tracing::warn!(error = chain(&error), "image locks may still be held");
        }
    }

    /// Gives everything up.
    pub(crate) async fn release(self) -> Result<(), String> {
        let problems = self
            .visit("giving up shared volumes", |volumes| {
                let mut problems = Vec::new();
                for held in volumes.iter_mut() {
                    // Its locks go with it.
                    held.volume = None;
                    if let Some(registration) = held.registration.take()
                        && let Err(error) = registration.release()
                    {
                        problems.push(chain(&error));
                    }
                }
                problems
            })
            .await
            .map_err(|error| chain(&error))?;
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        }
    }
}

pub(super) fn stand_down(volumes: &[HeldVolume]) {
    for held in volumes {
        if let (Some(volume), Fence::KatamaranLocks) = (&held.volume, held.fence) {
            volume.stand_down();
        }
    }
}

fn name(drive: &str, path: &str) -> String {
    format!("drive {drive} ({path})")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::shared::drives::Medium;

    #[tokio::test]
    async fn what_is_known_can_be_told_while_somebody_hangs_on_the_volumes() {
        let held = Held::default();
        let drive = Drive {
            id: "disk0".into(),
            medium: Medium::Path("/v".into()),
            writable: true,
        };
        held.visit("a look", move |volumes| {
            volumes.push(HeldVolume::new(&drive));
        })
        .await
        .unwrap();
        let (never, hang) = std::sync::mpsc::channel::<()>();
        let (began, begun) = std::sync::mpsc::channel();
        let hanging = held.visit("a look that hangs", move |_| {
            began.send(()).unwrap();
            hang.recv().ok();
        });
        let telling = async {
            tokio::task::spawn_blocking(move || begun.recv().unwrap())
                .await
                .unwrap();
            assert_eq!(held.names(), ["drive disk0 (/v)"]);
            assert_eq!(held.report(true)[0].attached_ms, None);
            held.stand_down().await;
            drop(never);
        };
        let (hung, ()) = tokio::join!(hanging, telling);
        hung.unwrap();
        assert_eq!(held.clone().release().await, Ok(()));
    }
}
