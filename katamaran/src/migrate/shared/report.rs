//! Shared volumes in the report.

use serde::{Deserialize, Serialize};

/// A volume that both nodes had open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedVolumeReport {
    /// QEMU's name of the drive.
    pub drive: String,
    /// The volume as this node's QEMU names it.
    pub path: String,
    /// How it is known that both nodes had the same one.
    pub proof: Proof,
    /// What a block device said that it is.
    pub identity: Option<String>,
    /// What kept everybody else from writing.
    pub fence: Fence,
    /// From the proof that both nodes had it until this side saw that one of them had let go, in milliseconds;
    /// `null` if it did not see that.
    pub attached_ms: Option<f64>,
}

/// How it is known that both nodes have the same volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Each side saw a lock that the other one holds on a byte of the file.
    Locks,
    /// Both are the same device of one kernel.
    SameDevice,
    /// The device has the same world-wide identity on both nodes.
    DeviceIdentity,
    /// The same, and each side saw the key that the other one has registered with the device.
    ReservationKeys,
    /// It is not known; the user vouched for it.
    Unproven,
}

/// What keeps others from writing to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fence {
    /// QEMU's own image locks.
    ImageLocks,
    /// The same locks, held by katamaran for a QEMU that does not take them.
    KatamaranLocks,
    /// A persistent reservation: the device refuses the writes of other nodes.
    Reservation,
    /// Nothing: only that the VM runs on one node at a time.
    None,
}

impl Proof {
    /// As the report names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Locks => "locks seen both ways",
            Self::SameDevice => "the same device",
            Self::DeviceIdentity => "device identity",
            Self::ReservationKeys => "device identity, reservation keys seen both ways",
            Self::Unproven => "UNPROVEN (--trust-shared-volume)",
        }
    }
}

impl Fence {
    /// As a person reads it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImageLocks => "QEMU's image locks",
            Self::KatamaranLocks => "image locks held by katamaran",
            Self::Reservation => "persistent reservation",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_in_the_report_are_stable() {
        let report = SharedVolumeReport {
            drive: "drive-virtio-disk0".into(),
            path: "/v".into(),
            proof: Proof::ReservationKeys,
            identity: Some("naa.5000".into()),
            fence: Fence::KatamaranLocks,
            attached_ms: None,
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"drive":"drive-virtio-disk0","path":"/v","proof":"reservation-keys","identity":"naa.5000","fence":"katamaran-locks","attached_ms":null}"#
        );
    }
}
