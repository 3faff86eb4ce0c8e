//! What the two nodes say to each other, once a control connection stands.
//!
//! ```text
//!   source                                    destination
//!     Hello ───────────────────────────────────▶ versions
//!     Prepare ─────────────────────────────────▶ compare the two VMs, find the tap
//!     Attach (only with shared volumes) ───────▶ it has the same ones, and nobody else has
//!     Arm ─────────────────────────────────────▶ tunnel end, delivery, buffer
//!     Export (unless nothing is mirrored) ─────▶ QEMU exports the drives
//!                 (the drives' data travels on connections of its own)
//!     Incoming ────────────────────────────────▶ QEMU listens for RAM
//!                 (RAM travels on connections of its own)
//!     Conntrack (any number, until Finish) ────▶ connections of the VM, for its table
//!     Block ───────────────────────────────────▶ hold what arrives from now on
//!     [flip, drain, stop]
//!     Inject (only if QEMU stopped first) ─────▶ older packets, ahead of the held ones
//!     Checksums (only with --verify-storage) ──▶ of some blocks of a drive
//!     CloseExport (only after Export) ─────────▶ the drives are complete: nobody writes to them any more
//!     ◀───────────────────────────────────────── Loaded: the VM's state is complete
//!     Commit ══════════════════════════════════▶ run it           (point of no return)
//!     Reconcile ───────────────────────────────▶ the destination's half of the ledger
//!     Finish ──────────────────────────────────▶ undo what was set up
//!     Abort (instead, any time before Commit) ─▶ undo, give held packets back
//! ```
//!
//! Wire types are promises: a field is never renamed or given another meaning within a
//! [`PROTOCOL`] version.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conntrack::wire::{ConntrackAnswer, ConntrackBatch};
use super::ledger::{DestinationLedger, Verdict};
use super::report::LedgerReport;
use super::shared::wire::{SharedAnswer, SharedOffer};
use super::storage::DriveDescription;
use crate::control::Protocol;
use crate::journal::Receipts;
use crate::net::packet::VnetHeader;
use crate::net::tapfd::TapFrame;

/// The version of these messages that this build speaks.
pub const PROTOCOL: u16 = 3;

/// UDP port of the vxlan fallback (IANA's is 4789, which a CNI may own).
pub const VXLAN_PORT: u16 = 7483;

/// This session's messages.
#[derive(Debug, Clone, Copy)]
pub struct MigrationProtocol;

impl Protocol for MigrationProtocol {
    type Request = Request;
    type Reply = Reply;
    type Notice = Notice;
}

/// From the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    Hello {
        versions: Vec<u16>,
        software: String,
    },
    Prepare(VmDescription),
    Attach(SharedOffer),
    Arm(Arm),
    /// Export the drives of [`VmDescription`], for writing.
    Export,
    /// Of up to `blocks` blocks (1 MiB) of an exported drive.
    Checksums {
        drive: String,
        first_block: u64,
        blocks: u64,
    },
    /// Close these exports.
    CloseExport,
    Incoming {
        multifd_channels: u8,
    },
    /// Changes of the VM's connections, from the start of the RAM copy on.
    Conntrack(ConntrackBatch),
    Block,
    Inject {
        frames: Vec<WireFrame>,
        /// Of [`VmDescription::nics`].
        #[serde(default, skip_serializing_if = "is_first")]
        nic: usize,
    },
    Commit,
    Reconcile {
        redirected: Option<u64>,
        #[serde(default, skip_serializing_if = "is_first")]
        nic: usize,
    },
    Finish {
        summary: Summary,
    },
    Abort {
        reason: String,
        /// Whose packets are given back.
        #[serde(default, skip_serializing_if = "is_first")]
        nic: usize,
    },
}

/// With one network card the wire form is what it was before there could be more.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_first(nic: &usize) -> bool {
    *nic == 0
}

/// From the destination, one per request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Hello {
        version: u16,
        software: String,
    },
    Prepared(Prepared),
    Attached(SharedAnswer),
    Armed {
        buffer: Buffer,
    },
    Exported,
    Checksums(Checksums),
    ExportClosed,
    Listening,
    Conntrack(ConntrackAnswer),
    Blocked,
    Injected {
        frames: u64,
    },
    Committed(Resumed),
    Ledger(Box<DestinationLedger>),
    Finished {
        left_behind: Vec<String>,
    },
    /// The packets that were held, oldest first; `more` when another [`Request::Abort`] gets the rest. `arrived` have
    /// come through the tunnel (D1).
    Aborted {
        frames: Vec<WireFrame>,
        more: bool,
        arrived: Option<u64>,
    },
}

/// From the destination, unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Notice {
    /// QEMU has loaded the whole VM: it could run.
    Loaded,
    /// QEMU could not load the VM, or died.
    IncomingFailed { reason: String },
    /// The destination gives up (a signal, a fault on its side).
    GivingUp { reason: String },
}

/// A network card of the VM, as the source sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicDescription {
    pub addresses: Vec<IpAddr>,
    pub mac: [u8; 6],
    pub tap_mtu: u32,
}

/// The VM as the source sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmDescription {
    /// The first network card.
    #[serde(flatten)]
    pub nic: NicDescription,
    /// The others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_nics: Vec<NicDescription>,
    pub ram_bytes: Option<u64>,
    pub machine_type: Option<String>,
    pub vcpus: Option<u32>,
    pub qemu_version: (u32, u32, u32),
    pub storage: Storage,
    /// The drives to mirror; none with shared storage.
    pub drives: Vec<DriveDescription>,
    /// What the destination can prove later; absent from nodes that keep no journal, and from a look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipts: Option<Receipts>,
    /// `--cni-convergence-delay`, for whoever cleans up after a dead session; absent from a look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convergence_s: Option<u64>,
}

impl VmDescription {
    /// All network cards.
    pub fn nics(&self) -> impl Iterator<Item = &NicDescription> {
        std::iter::once(&self.nic).chain(&self.more_nics)
    }

    /// The addresses of all of them.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.nics()
            .flat_map(|nic| &nic.addresses)
            .copied()
            .collect()
    }
}

/// How the VM's drives get to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// They are mirrored.
    Mirrored,
    /// Both nodes open the same volumes.
    Shared,
}

/// The destination's answer to [`VmDescription`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    pub qemu_version: (u32, u32, u32),
    pub tap: String,
    pub kernel: String,
}

/// What came of it, for the destination's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub verdict: Verdict,
    pub ledger: Option<Box<LedgerReport>>,
    pub unproven: Vec<String>,
}

/// How packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// Encapsulated by the program: IPIP and IP6IP6.
    Ip,
    /// The same with a GRE header.
    Gre,
    /// Ethernet frames through a vxlan device.
    Vxlan { port: u16 },
    /// No redirect.
    None,
}

/// Set up the destination's data path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    pub tunnel: Tunnel,
    /// The source's addresses on the node network, by which its packets are known.
    pub source_addresses: Vec<IpAddr>,
    /// The destination's addresses that packets are sent to.
    pub destination_addresses: Vec<IpAddr>,
    /// The longest pause to expect, for the size of the buffer.
    pub downtime_limit_ms: u64,
}

/// What holds packets until the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Buffer {
    /// sch_plug, this many bytes.
    Plug { limit_bytes: u32 },
    /// The tap's own ring, this many packets.
    TapRing { slots: u32 },
}

/// The VM runs on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// QEMU's RESUME event, microseconds since the epoch, on the destination's clock.
    pub resumed_at_us: i64,
    /// The held packets were released, same clock.
    pub released_at_us: i64,
    /// What was held for the VM then; absent where that could not be read, and from older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// What waited for the VM on the destination when it was told to run: how near the buffer was to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Packets; in a plug a super-packet counts as one.
    pub packets: u64,
    /// Their bytes; only a plug knows.
    pub bytes: Option<u64>,
    /// Packets that the plug has dropped because it was full.
    pub dropped: u64,
}

impl Held {
    /// How full the buffer was, in percent.
    #[must_use]
    pub fn percent_of(&self, buffer: Buffer) -> u64 {
        let (held, most) = match buffer {
            Buffer::Plug { limit_bytes } => (self.bytes.unwrap_or(0), limit_bytes),
            Buffer::TapRing { slots } => (self.packets, slots),
        };
        held.saturating_mul(100) / u64::from(most).max(1)
    }
}

/// A frame with its virtio_net_hdr (10 bytes) in front, as read from a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFrame(#[serde(with = "base64_bytes")] pub Vec<u8>);

impl From<&TapFrame> for WireFrame {
    fn from(read: &TapFrame) -> Self {
        Self::new(read.vnet_header, &read.frame)
    }
}

impl WireFrame {
    /// A frame, and the header that goes in front of it.
    #[must_use]
    pub fn new(header: VnetHeader, frame: &[u8]) -> Self {
        Self([&header.0[..], frame].concat())
    }

    /// The header and the frame; `None` where it is too short for that.
    #[must_use]
    pub fn split(&self) -> Option<(VnetHeader, &[u8])> {
        let (header, frame) = self.0.split_first_chunk()?;
        Some((VnetHeader(*header), frame))
    }
}

/// Checksums of consecutive blocks, 16 bytes each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums(#[serde(with = "base64_bytes")] pub Vec<u8>);

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conntrack::wire::Fate;
    use super::*;

    #[test]
    fn the_wire_form_is_what_version_3_promises() {
        let golden = [
            (
                serde_json::to_string(&Request::Block).unwrap(),
                r#""Block""#,
            ),
            (
                serde_json::to_string(&[Request::Export, Request::CloseExport]).unwrap(),
                r#"["Export","CloseExport"]"#,
            ),
            (
                serde_json::to_string(&[Reply::Exported, Reply::ExportClosed]).unwrap(),
                r#"["Exported","ExportClosed"]"#,
            ),
            (
                serde_json::to_string(&Storage::Mirrored).unwrap(),
                r#""mirrored""#,
            ),
            (
                serde_json::to_string(&DriveDescription {
                    id: "disk".into(),
                    virtual_size: 512,
                    format: "raw".into(),
                    read_only: false,
                    device: None,
                })
                .unwrap(),
                r#"{"id":"disk","virtual_size":512,"format":"raw","read_only":false,"device":null}"#,
            ),
            (
                serde_json::to_string(&Request::Hello {
                    versions: vec![3],
                    software: "0.1.0".into(),
                })
                .unwrap(),
                r#"{"Hello":{"versions":[3],"software":"0.1.0"}}"#,
            ),
            (
                serde_json::to_string(&Request::Inject {
                    frames: vec![WireFrame(vec![0, 1, 2])],
                    nic: 0,
                })
                .unwrap(),
                r#"{"Inject":{"frames":["AAEC"]}}"#,
            ),
            (
                serde_json::to_string(&Reply::Committed(Resumed {
                    resumed_at_us: 1,
                    released_at_us: 2,
                    held: None,
                }))
                .unwrap(),
                r#"{"Committed":{"resumed_at_us":1,"released_at_us":2}}"#,
            ),
            (
                serde_json::to_string(&Request::Conntrack(ConntrackBatch::default())).unwrap(),
                r#"{"Conntrack":{"entries":[],"gone":[]}}"#,
            ),
            (
                serde_json::to_string(&Reply::Conntrack(ConntrackAnswer::Done(vec![
                    Fate::New,
                    Fate::WithoutHelper,
                    Fate::Needless,
                    Fate::Refused("why".into()),
                ])))
                .unwrap(),
                r#"{"Conntrack":{"done":["new","without-helper","needless",{"refused":"why"}]}}"#,
            ),
            (
                serde_json::to_string(&Notice::Loaded).unwrap(),
                r#""Loaded""#,
            ),
        ];
        for (written, promised) in golden {
            assert_eq!(written, promised);
        }
    }

    #[test]
    fn frames_survive_the_wire() {
        let frame = WireFrame((0..=255).collect());
        let text = serde_json::to_string(&frame).unwrap();
        assert_eq!(serde_json::from_str::<WireFrame>(&text).unwrap(), frame);
        assert!(serde_json::from_str::<WireFrame>("\"not base64!\"").is_err());
    }
}
