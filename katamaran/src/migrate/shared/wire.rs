//! What the nodes say to each other about shared volumes.

use serde::{Deserialize, Serialize};

use super::report::Proof;

/// What the source has open, and how it can be recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedOffer {
    pub place: Place,
    pub volumes: Vec<SharedVolume>,
}

/// One of the source's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedVolume {
    /// QEMU's name of the drive: the same on both nodes.
    pub drive: String,
    pub path: String,
    /// Where one kernel has both, this settles it.
    pub number: Option<Number>,
    /// The source holds the lock of this session on it.
    pub marked: bool,
    /// What a block device says that it is.
    pub identity: Option<String>,
    /// The source's reservation key on it.
    pub key: Option<u64>,
}

/// A file or device as one kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Number {
    File { device: u64, inode: u64 },
    BlockDevice { number: u64 },
}

/// What the destination found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedAnswer {
    pub place: Place,
    /// In the order of the offer.
    pub volumes: Vec<SharedFinding>,
}

/// One of the destination's volumes beside the source's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFinding {
    pub drive: String,
    pub path: String,
    pub proof: Proof,
    /// Why it is unproven.
    pub doubt: Option<String>,
    /// The destination holds the lock of this session on it.
    pub marked: bool,
    /// The destination's reservation key on it.
    pub key: Option<u64>,
}

/// Where a side runs: tells two processes of one kernel from namesakes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub boot_id: String,
    pub pid_namespace: u64,
    /// The side's QEMU and katamaran.
    pub processes: Vec<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_what_version_2_promises() {
        let place = Place {
            boot_id: "b".into(),
            pid_namespace: 1,
            processes: vec![2],
        };
        let offer = SharedOffer {
            place: place.clone(),
            volumes: vec![SharedVolume {
                drive: "disk0".into(),
                path: "/v".into(),
                number: Some(Number::BlockDevice { number: 7 }),
                marked: true,
                identity: None,
                key: Some(9),
            }],
        };
        let answer = SharedAnswer {
            place,
            volumes: vec![SharedFinding {
                drive: "disk0".into(),
                path: "/v".into(),
                proof: Proof::DeviceIdentity,
                doubt: None,
                marked: true,
                key: None,
            }],
        };
        let place = r#""place":{"boot_id":"b","pid_namespace":1,"processes":[2]}"#;
        assert_eq!(
            serde_json::to_string(&offer).unwrap(),
            format!(
                r#"{{{place},"volumes":[{{"drive":"disk0","path":"/v","number":{{"block-device":{{"number":7}}}},"marked":true,"identity":null,"key":9}}]}}"#
            )
        );
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            format!(
                r#"{{{place},"volumes":[{{"drive":"disk0","path":"/v","proof":"device-identity","doubt":null,"marked":true,"key":null}}]}}"#
            )
        );
    }
}
