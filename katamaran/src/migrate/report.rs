//! The JSON report: stable, versioned. Every number in it was measured; what was not is `null`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::conntrack::report::ConntrackReport;
use super::ledger::{
    Count, DestinationLedger, DropRecord, Imbalance, Recovered, Returned, SourceLedger, Verdict,
};
use super::message::{Buffer, Held, Tunnel};
use super::reconcile::Reconciled;
use super::rollback::Undone;
use super::several::NicReport;
use super::shared::report::SharedVolumeReport;
use super::storage::DriveProgress;
use crate::qmp::command::CopyMode;
use crate::role::Role;
use crate::session_id::SessionId;

/// Version of this format.
pub const SCHEMA: u32 = 1;

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The VM runs on the destination.
    Migrated,
    /// The VM runs on the source.
    Failed,
    /// The VM runs on the source: the time that the user allows was over (`--migration-timeout`, `--pause-limit`).
    #[serde(rename = "timeout")]
    TimedOut,
    /// Refused before anything was touched.
    Refused,
    /// Stopped by a signal; the VM runs on the source.
    #[serde(alias = "interrupted")]
    Cancelled,
    /// COMMIT was sent and not answered: see the error for what to check.
    Undecided,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseTime {
    pub name: String,
    /// Microseconds since the epoch.
    pub started_us: i64,
    pub duration_ms: f64,
}

/// The RAM copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Ram {
    pub total: u64,
    pub transferred: u64,
    /// Bytes per second; absent when the copy was too short to measure it.
    pub bandwidth: Option<f64>,
    /// The same.
    pub dirty_rate: Option<f64>,
    pub passes: u64,
    /// Bytes that were left when the VM was stopped, as predicted and as QEMU counted.
    pub remaining_at_stop: Option<u64>,
}

/// A drive that was mirrored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// As the user names it.
    pub id: String,
    /// The block job.
    pub job: String,
    /// What the guest sees, in bytes.
    pub size: u64,
    /// Bytes that the mirror copied, what was written meanwhile included.
    pub copied: u64,
    /// How the guest's writes were mirrored at the end: `background` or `write-blocking`.
    pub mode: String,
    /// From the start of the mirror until it was ready, or until it failed.
    pub seconds: f64,
    /// Of the copy until then, measured, bytes per second.
    pub bandwidth: Option<f64>,
    /// Bytes that were on the source only when its mirror had ended and the VM was stopped.
    pub backlog_at_commit: Option<u64>,
    /// Both nodes' drives were compared, and equal.
    pub verified: Option<bool>,
}

impl Disk {
    /// A drive whose mirror stands like this.
    #[must_use]
    pub fn new(size: u64, progress: &DriveProgress, mode: &CopyMode) -> Self {
        let seconds = progress.took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = |bytes: u64| bytes as f64 / seconds;
        Self {
            id: progress.job.drive.clone(),
            job: progress.job.job.clone(),
            size,
            copied: progress.copied,
            mode: mode.to_string(),
            seconds,
            bandwidth: progress
                .copied_until_ready
                .filter(|_| seconds > 0.0)
                .map(rate),
            backlog_at_commit: None,
            verified: None,
        }
    }
}

/// The moments of the cutover, each in milliseconds after the flip; `null` if it did not come to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cutover {
    /// When the flip was, in microseconds since the epoch, by the source's clock.
    pub flip_us: Option<i64>,
    /// Duration of the map write that flips the program, in microseconds.
    pub flip_write_us: Option<f64>,
    /// Map write to the first packet that the kernel redirected, in microseconds, by the kernel's
    /// clock. It contains the wait for that packet to arrive.
    pub first_redirect_us: Option<f64>,
    pub drained_ms: Option<f64>,
    pub stopped_ms: Option<f64>,
    /// The mirrors of all drives had ended.
    pub disks_ended_ms: Option<f64>,
    /// The drives were the destination's, and QEMU went on.
    pub handed_over_ms: Option<f64>,
    pub loaded_ms: Option<f64>,
    pub committed_ms: Option<f64>,
    pub released_ms: Option<f64>,
    pub predicted_pause_ms: Option<f64>,
    /// QEMU stopped the VM before the redirect was in place.
    pub qemu_stopped_first: bool,
}

/// A buffer that was this full is warned of.
const NEARLY_FULL_PERCENT: u64 = 80;

/// Both halves of the ledger and what they amount to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LedgerReport {
    pub s1: Option<Count>,
    pub s2: Option<Count>,
    /// S2': read by QEMU on the source, in packets.
    pub s2_read: Option<u64>,
    pub s3: Option<Count>,
    pub d1: Option<Count>,
    pub d2: Option<Count>,
    pub d3: Option<Count>,
    /// D3': read by QEMU on the destination, in packets.
    pub d3_read: Option<u64>,
    /// Drops that the kernels reported for the VM's packets.
    pub x: Option<u64>,
    pub digest_source: Option<String>,
    pub digest_dest: Option<String>,
    pub lost: u64,
    pub duplicated: u64,
    pub recovered: Recovered,
    pub source: SourceLedger,
    pub destination: DestinationLedger,
    pub imbalances: Vec<Imbalance>,
}

impl LedgerReport {
    /// Puts both halves side by side.
    #[must_use]
    pub fn new(
        source: SourceLedger,
        destination: DestinationLedger,
        recovered: Recovered,
        result: &Reconciled,
    ) -> Self {
        let read = |passed: Option<Count>, tap: Option<super::ledger::TapBalance>| {
            let (passed, tap) = (passed?, tap?);
            Some(
                passed
                    .packets
                    .saturating_sub(tap.not_enqueued + tap.dropped + tap.unread),
            )
        };
        Self {
            s1: source.s1,
            s2: source.s2,
            s2_read: read(source.s2, source.tap).map(|read| {
                read.saturating_sub(
                    recovered.from_source_tap + recovered.swallowed + recovered.beyond_recovery,
                )
            }),
            s3: source.s3,
            d1: destination.d1,
            d2: destination.d2,
            d3: destination.d3,
            d3_read: read(destination.d3, destination.tap),
            x: result.dropped,
            digest_source: source.digest.map(|d| format!("{d:016x}")),
            digest_dest: destination.digest.map(|d| format!("{d:016x}")),
            lost: result.lost,
            duplicated: result.duplicated,
            recovered,
            imbalances: result.imbalances.clone(),
            source,
            destination,
        }
    }

    /// All drops, of both nodes.
    pub fn drops(&self) -> impl Iterator<Item = &DropRecord> {
        self.source
            .drops
            .iter()
            .chain(&self.destination.drops)
            .flatten()
    }
}

/// The report of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub software: String,
    pub outcome: Outcome,
    /// What went wrong, where, and what to do next.
    pub error: Option<String>,
    pub session: SessionId,
    pub role: Role,
    pub phases: Vec<PhaseTime>,
    /// The VM's STOP on the source to its RESUME on the destination, from QEMU's events; the offset
    /// of the two clocks is estimated over the session.
    pub downtime_ms: Option<f64>,
    /// QEMU's own figure, which ends when the source has handed the stream over.
    pub qemu_downtime_ms: Option<u64>,
    /// Flip to release of the held packets.
    pub blackout_ms: Option<f64>,
    pub clock_offset_us: Option<f64>,
    pub clock_rtt_us: Option<f64>,
    pub cutover: Cutover,
    pub ram: Option<Ram>,
    pub disks: Vec<Disk>,
    /// What both nodes had open.
    #[serde(default)]
    pub shared_volumes: Vec<SharedVolumeReport>,
    pub tunnel: Option<Tunnel>,
    pub buffer: Option<Buffer>,
    /// What was held when the VM was told to run on the destination.
    #[serde(default)]
    pub held: Option<Held>,
    /// The VM's connections, on the source; `null` where nobody asked for them (`--conntrack off`).
    #[serde(default)]
    pub conntrack: Option<ConntrackReport>,
    /// Of the whole VM.
    pub ledger: Option<LedgerReport>,
    /// One for each of the VM's network cards, where it has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicReport>,
    /// On the source, after an abort: what waited at the destination is back. `null` where nothing was redirected.
    #[serde(default)]
    pub returned: Option<Returned>,
    pub verdict: Verdict,
    /// Why the verdict is not `proven`, when a counter was missing.
    pub unproven: Vec<String>,
    pub drops: Vec<DropRecord>,
    pub warnings: Vec<String>,
    pub cleanup: Vec<Undone>,
}

impl Report {
    /// An empty report: nothing measured, nothing proven.
    #[must_use]
    pub fn new(session: SessionId, role: Role) -> Self {
        Self {
            schema: SCHEMA,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            outcome: Outcome::Failed,
            error: None,
            session,
            role,
            phases: Vec::new(),
            downtime_ms: None,
            qemu_downtime_ms: None,
            blackout_ms: None,
            clock_offset_us: None,
            clock_rtt_us: None,
            cutover: Cutover::default(),
            ram: None,
            disks: Vec::new(),
            shared_volumes: Vec::new(),
            tunnel: None,
            buffer: None,
            held: None,
            conntrack: None,
            ledger: None,
            nics: Vec::new(),
            returned: None,
            verdict: Verdict::Unproven,
            unproven: Vec::new(),
            drops: Vec::new(),
            warnings: Vec::new(),
            cleanup: Vec::new(),
        }
    }

    /// Notes what was held, and warns where the buffer was nearly full, or overflowed.
    pub(crate) fn note_held(&mut self, held: Option<Held>) {
        self.held = held;
        let (Some(held), Some(buffer)) = (held, self.buffer) else {
            return;
        };
        let percent = held.percent_of(buffer);
        let what = match buffer {
            Buffer::Plug { .. } => "the plug",
            Buffer::TapRing { .. } => "the tap's ring",
        };
        if held.dropped > 0 {
            self.warnings.push(format!(
                "{what} was full and dropped {} packets: a shorter pause, or a larger --downtime, which it is sized by",
                held.dropped
            ));
        } else if percent >= NEARLY_FULL_PERCENT {
            self.warnings.push(format!(
                "{what} was {percent} % full when the VM ran on: at a higher rate, or in a longer pause, packets would be dropped"
            ));
        }
    }

    /// The status that the process exits with.
    #[must_use]
    pub fn exit_code(&self, require_zero_drop: bool) -> u8 {
        match self.outcome {
            Outcome::Refused => 2,
            Outcome::Cancelled => 130,
            Outcome::Undecided => 4,
            Outcome::Migrated if require_zero_drop && self.verdict != Verdict::Proven => 3,
            // A migration that failed is not done, whatever is left: its status says that the VM is on the source.
            Outcome::Migrated if self.left_behind().next().is_some() => 5,
            Outcome::Migrated => 0,
            Outcome::Failed | Outcome::TimedOut => 1,
        }
    }

    /// Steps that could not be undone.
    pub fn left_behind(&self) -> impl Iterator<Item = &Undone> {
        self.cleanup.iter().filter(|u| u.error.is_some())
    }

    /// Writes the report, whole or not at all: into a temporary file beside it, then renamed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let temporary = temporary(path);
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, path)
    }

    /// Whether a report can be written there: found out before there is one.
    ///
    /// # Errors
    /// It can't.
    pub fn check_place(path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let temporary = temporary(path);
        std::fs::write(&temporary, "")?;
        std::fs::remove_file(&temporary)
    }

    /// Reads a report back.
    ///
    /// # Errors
    /// The file cannot be read, or is not a report of this schema.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::from_json(&std::fs::read(path)?)
    }

    /// The report that this text is.
    ///
    /// # Errors
    /// It is not a report of this schema.
    pub fn from_json(text: &[u8]) -> io::Result<Self> {
        // Another schema may have other fields: it is told by its number before anything else is read.
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let Version { schema } = serde_json::from_slice(text)?;
        if schema != SCHEMA {
            return Err(io::Error::other(format!(
                "report schema {schema} is not {SCHEMA}"
            )));
        }
        Ok(serde_json::from_slice(text)?)
    }
}

/// The file that becomes the one at `path`.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The warnings about a buffer that held so much.
    fn warned(buffer: Buffer, packets: u64, bytes: Option<u64>, dropped: u64) -> Vec<String> {
        let mut report = Report::new(SessionId(1), Role::Source);
        report.buffer = Some(buffer);
        report.note_held(Some(Held {
            packets,
            bytes,
            dropped,
        }));
        report.warnings
    }

    #[test]
    fn a_buffer_that_is_nearly_full_is_warned_of_and_one_that_overflowed_even_if_it_is_not() {
        let plug = Buffer::Plug {
            limit_bytes: 100_000,
        };
        assert_eq!(warned(plug, 50, Some(79_999), 0), [""; 0]);
        let nearly = warned(plug, 50, Some(80_000), 0);
        assert!(nearly[0].contains("80 % full"), "{nearly:?}");
        let over = warned(plug, 10, Some(10_000), 3);
        assert!(over[0].contains("dropped 3 packets") && over[0].contains("--downtime"));
        let ring = Buffer::TapRing { slots: 1000 };
        assert_eq!(warned(ring, 799, None, 0), [""; 0]);
        assert!(warned(ring, 800, None, 0)[0].contains("the tap's ring was 80 % full"));
    }
}
