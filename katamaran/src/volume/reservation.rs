//! Persistent reservations: the device itself refuses the writes of a node that may not write any more,
//! whatever runs there (SCSI-3 PERSISTENT RESERVE, NVMe reservations; linux/pr.h).
//!
//! ```text
//!            source's node                 destination's node
//! attach     registers its key             registers its key
//!            reserves                                           Write Exclusive - Registrants Only:
//!                                                               both could write, nobody else
//! COMMIT                                   preempts the source's key
//!                                                               the source's node can't write any more
//! end        unregisters (is gone)         releases, unregisters
//! ```
//!
//! A reservation is about the whole unit, so only volumes that are one have it: never a partition or a
//! logical volume, whose neighbours would be fenced off, too. It does not die with this process. A key of a
//! katamaran that has crashed is taken over by the next migration from the same node; the VM that runs
//! there is not disturbed by it, for its own node is registered.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use nix::errno::Errno;

use super::mark::Side;
use super::open::Volume;
use super::{Result, VolumeError, sys};

/// `PR_WRITE_EXCLUSIVE_REG_ONLY`.
const WRITE_EXCLUSIVE_REGISTRANTS: u32 = 3;
/// `PR_STS_RESERVATION_CONFLICT`, the SCSI status, in the low byte: older kernels (before 6.5) pass on what they
/// have, with more in the other bytes, and NVMe's own.
const CONFLICT: [c_int; 2] = [0x18, 0x83];
/// `PR_STS_IOERR`: also what a unit attention gives, which is told once and means nothing here.
const ATTENTION: c_int = 0x02;
const ATTEMPTS: u32 = 3;

/// `ktm` in the high bytes of a key.
const KEY_PREFIX: u64 = 0x006b_746d << 40;
const SESSION_MASK: u64 = (1 << 39) - 1;
/// Room for the keys of this many nodes.
const KEYS_MAX: usize = 500;

/// The key of a side in a session.
#[must_use]
pub fn key(side: Side, session: u64) -> u64 {
    let side = match side {
        Side::Source => 0,
        Side::Destination => 1 << 39,
    };
    KEY_PREFIX | side | (session & SESSION_MASK)
}

fn is_ours(key: u64) -> bool {
    key >> 40 == KEY_PREFIX >> 40
}

/// What came of registering.
#[derive(Debug)]
pub enum Registered {
    /// The device knows this node now.
    Yes(Registration),
    /// There are no reservations here, for this reason.
    Unsupported(String),
}

/// A key that the device knows this node by.
#[must_use = "a registration that is dropped stays on the device"]
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    file: Option<File>,
    key: u64,
}

impl Volume {
    /// The keys that are registered with the device, this node's included; `None` where it can't be asked.
    #[must_use]
    pub fn registered_keys(&self) -> Option<Vec<u64>> {
        self.is_whole_unit()
            .then(|| read_keys(&self.file).ok())
            .flatten()
    }

    /// Registers this node's key for the session.
    ///
    /// # Errors
    /// Somebody else is registered: another node's cluster software, or another migration.
    pub fn register(&self, side: Side, session: u64, expected: &[u64]) -> Result<Registered> {
        if !self.is_whole_unit() {
            return Ok(Registered::Unsupported(
                "it is not a whole SCSI or NVMe unit".to_owned(),
            ));
        }
        let key = key(side, session);
        // Not a second descriptor of the same open file: that would keep our locks when the volume is dropped.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = File::open(&path).map_err(VolumeError::io("open", &self.path))?;
        let keys = read_keys(&file);
        let known = keys.as_deref().unwrap_or_default();
        let strangers: Vec<u64> = known
            .iter()
            .copied()
            .filter(|key| !expected.contains(key))
            .collect();
        if strangers.iter().all(|key| is_ours(*key)) {
            // One of them may be this node's, of a katamaran that has crashed.
            for old in std::iter::once(0).chain(strangers.iter().copied()) {
                match outcome(|| sys::pr_register(&file, old, key)) {
                    Outcome::Done => {
                        let registration = Registration {
                            path: self.path.clone(),
                            file: Some(file),
                            key,
                        };
                        let others = strangers.iter().filter(|key| **key != old).copied();
                        return settle(registration, others.collect());
                    }
                    Outcome::Conflict => {}
                    Outcome::Failed(why) => return Ok(Registered::Unsupported(why)),
                }
            }
        }
        Err(self.reserved(&strangers))
    }

    fn reserved(&self, keys: &[u64]) -> VolumeError {
        let keys: Vec<String> = keys.iter().map(|key| format!("{key:#x}")).collect();
        VolumeError::Registered {
            path: self.path.clone(),
            keys: if keys.is_empty() {
                "which can't be read".to_owned()
            } else {
                keys.join(", ")
            },
        }
    }
}

/// Nobody but those who take part may be registered.
fn settle(registration: Registration, others: Vec<u64>) -> Result<Registered> {
    if others.is_empty() {
        return Ok(Registered::Yes(registration));
    }
    let error = VolumeError::Registered {
        path: registration.path.clone(),
        keys: others
            .iter()
            .map(|key| format!("{key:#x}"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    registration.release()?;
    Err(error)
}

impl Registration {
    /// What the device knows this node by.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.key
    }

    /// From now on only registered nodes can write.
    ///
    /// # Errors
    /// The device does not take it, or somebody else holds a reservation.
    pub fn reserve(&self) -> Result<()> {
        let reserve = |file: &File| sys::pr_reserve(file, self.key, WRITE_EXCLUSIVE_REGISTRANTS);
        self.expect_done("reserve writing", self.ask(reserve))
    }

    /// From now on the node with key `theirs` can't write; the reservation is ours.
    ///
    /// Without aborting what that node has under way: a QEMU that has handed its VM over has nothing. PREEMPT
    /// AND ABORT would wait for commands in the target, and the kernel's own target (6.1) was seen to wait for ever.
    ///
    /// # Errors
    /// The device does not take it.
    pub fn take_over(&self, theirs: u64) -> Result<()> {
        let preempt =
            |file: &File| sys::pr_preempt(file, self.key, theirs, WRITE_EXCLUSIVE_REGISTRANTS);
        match self.ask(preempt) {
            // They have gone by themselves.
            Outcome::Conflict => self.reserve(),
            other => self.expect_done("preempt the source's reservation", other),
        }
    }

    /// Gives up the reservation, if it is ours, and unregisters. That both are gone already is success.
    ///
    /// # Errors
    /// The device does not take it: the key stays registered.
    pub fn release(mut self) -> Result<()> {
        let release = |file: &File| sys::pr_release(file, self.key, WRITE_EXCLUSIVE_REGISTRANTS);
        if let Outcome::Failed(why) = self.ask(release) {
            tracing::debug!(path = %self.path.display(), why, "the reservation was not released");
        }
        let result = match self.ask(|file: &File| sys::pr_register(file, self.key, 0)) {
            Outcome::Done | Outcome::Conflict => Ok(()),
            failed @ Outcome::Failed(_) => self.expect_done("unregister", failed),
        };
        if result.is_ok() {
            self.file = None;
        }
        result
    }

    fn ask(&self, request: impl Fn(&File) -> Result<c_int, Errno>) -> Outcome {
        match &self.file {
            Some(file) => outcome(|| request(file)),
            None => Outcome::Done,
        }
    }

    fn expect_done(&self, doing: &'static str, outcome: Outcome) -> Result<()> {
        let why = match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Conflict => "reservation conflict".to_owned(),
            Outcome::Failed(why) => why,
        };
        Err(VolumeError::Reservation {
            doing,
            path: self.path.clone(),
            why,
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.file.is_some() {
            tracing::warn!(
                path = %self.path.display(),
                key = format_args!("{:#x}", self.key),
                "a persistent reservation key is left on the device"
            );
        }
    }
}

/// What a device made of a request.
enum Outcome {
    Done,
    Conflict,
    Failed(String),
}

fn outcome(request: impl Fn() -> Result<c_int, Errno>) -> Outcome {
    let mut last = Outcome::Failed(String::new());
    for _ in 0..ATTEMPTS {
        match request() {
            Ok(0) => return Outcome::Done,
            Ok(status) if CONFLICT.contains(&(status & 0xff)) => return Outcome::Conflict,
            Err(Errno::EBADE) => return Outcome::Conflict,
            Ok(status) if status & 0xff == ATTENTION => {
                last = Outcome::Failed("the device refuses the request".to_owned());
            }
            Ok(status) => return Outcome::Failed(format!("the device answers {status:#x}")),
            Err(errno) => return Outcome::Failed(errno.desc().to_owned()),
        }
    }
    last
}

fn read_keys(device: &File) -> Result<Vec<u64>, Errno> {
    if let Ok(namespace) = sys::nvme_namespace(device) {
        // A host with an identifier of 128 bits has to ask for the extended form, and others may.
        for form in [&NVME_EXTENDED, &NVME_SHORT] {
            let mut data = vec![0; form.header + KEYS_MAX * form.entry];
            if sys::nvme_reservation_report(device, namespace, form.extended, &mut data)? == 0 {
                return Ok(form.keys(&data));
            }
        }
        return Err(Errno::EIO);
    }
    // PERSISTENT RESERVE IN, service action READ KEYS.
    let mut data = vec![0; 8 + KEYS_MAX * 8];
    let length = u16::try_from(data.len()).map_err(|_too_big| Errno::EINVAL)?;
    let [high, low] = length.to_be_bytes();
    for _ in 0..ATTEMPTS {
        let mut command = [0x5e, 0, 0, 0, 0, 0, 0, high, low, 0];
        if sys::scsi_read(device, &mut command, &mut data)? == 0 {
            return Ok(scsi_keys(&data));
        }
    }
    Err(Errno::EIO)
}

/// Generation, length in bytes, keys; all big-endian.
fn scsi_keys(data: &[u8]) -> Vec<u64> {
    let Some((header, keys)) = data.split_first_chunk::<8>() else {
        return Vec::new();
    };
    let [_, _, _, _, length @ ..] = header;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(0);
    let keys = keys.get(..length).unwrap_or(keys);
    keys.as_chunks::<8>()
        .0
        .iter()
        .map(|key| u64::from_be_bytes(*key))
        .collect()
}

/// Where a Reservation Report has its keys.
struct NvmeForm {
    extended: bool,
    header: usize,
    entry: usize,
    /// Of the key in an entry.
    key: usize,
}

const NVME_SHORT: NvmeForm = NvmeForm {
    extended: false,
    header: 24,
    entry: 24,
    key: 16,
};
const NVME_EXTENDED: NvmeForm = NvmeForm {
    extended: true,
    header: 64,
    entry: 64,
    key: 8,
};

impl NvmeForm {
    /// The number of controllers is in bytes 5 and 6, little-endian as everything.
    fn keys(&self, data: &[u8]) -> Vec<u64> {
        let Some(&[low, high]) = data.get(5..7) else {
            return Vec::new();
        };
        let count = usize::from(u16::from_le_bytes([low, high]));
        data.get(self.header..)
            .unwrap_or_default()
            .chunks_exact(self.entry)
            .take(count)
            .filter_map(|entry| entry.get(self.key..)?.first_chunk::<8>())
            .map(|key| u64::from_le_bytes(*key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_katamaran_the_side_and_the_session() {
        let (source, destination) = (
            key(Side::Source, u64::MAX),
            key(Side::Destination, u64::MAX),
        );
        assert!(is_ours(source) && is_ours(destination) && source != destination);
        assert_ne!(source, key(Side::Source, 1));
        assert!(!is_ours(0) && !is_ours(0x1234));
    }

    #[test]
    fn scsi_keys_are_read_as_far_as_they_are_told() {
        let mut data = vec![0, 0, 0, 9, 0, 0, 0, 16];
        data.extend(0x6b74_6d01_u64.to_be_bytes());
        data.extend(0x77_u64.to_be_bytes());
        data.extend([0xff; 16]);
        assert_eq!(scsi_keys(&data), [0x6b74_6d01, 0x77]);
        // More keys than there was room for.
        data[7] = 200;
        assert_eq!(scsi_keys(&data).len(), 4);
        assert_eq!(scsi_keys(&[0; 3]), Vec::<u64>::new());
    }

    #[test]
    fn nvme_keys_are_read_in_both_forms() {
        for form in [NVME_SHORT, NVME_EXTENDED] {
            let mut data = vec![0; form.header + 3 * form.entry];
            data[5] = 2;
            for (at, key) in [(0, 0x77_u64), (1, 0x6b74_6d01)] {
                let start = form.header + at * form.entry + form.key;
                data[start..start + 8].copy_from_slice(&key.to_le_bytes());
            }
            assert_eq!(form.keys(&data), [0x77, 0x6b74_6d01]);
        }
    }

    #[test]
    fn a_status_of_the_device_is_no_success_though_the_call_succeeds() {
        assert!(matches!(outcome(|| Ok(0)), Outcome::Done));
        assert!(matches!(outcome(|| Ok(0x18)), Outcome::Conflict));
        assert!(matches!(outcome(|| Ok(2)), Outcome::Failed(_)));
        assert!(matches!(outcome(|| Err(Errno::ENOTTY)), Outcome::Failed(_)));
    }

    #[test]
    fn a_unit_attention_is_asked_again() {
        let left = std::cell::Cell::new(1);
        let answer = || match left.replace(0) {
            0 => Ok(0),
            _ => Ok(ATTENTION),
        };
        assert!(matches!(outcome(answer), Outcome::Done));
    }
}
