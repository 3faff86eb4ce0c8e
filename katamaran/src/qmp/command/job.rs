//! Block jobs: mirrors, and what becomes of them.

use serde::{Deserialize, Serialize};

use super::{Done, commands};
use crate::deadline;
use crate::open_enum::open_enum;

open_enum! {
    /// How far a job is.
    pub enum JobStatus {
        Undefined = "undefined",
        Created = "created",
        Running = "running",
        Paused = "paused",
        Ready = "ready",
        Standby = "standby",
        Waiting = "waiting",
        Pending = "pending",
        Aborting = "aborting",
        Concluded = "concluded",
        Null = "null",
    }
}

impl JobStatus {
    /// Whether the job does nothing any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Concluded | Self::Null)
    }
}

open_enum! {
    /// When a mirror writes what the guest writes.
    pub enum CopyMode {
        /// Some time later.
        Background = "background",
        /// Before the guest's write is acknowledged.
        WriteBlocking = "write-blocking",
    }
}

open_enum! {
    /// Whether a job has met an error that paused it.
    pub enum IoStatus {
        Ok = "ok",
        Failed = "failed",
        NoSpace = "nospace",
    }
}

impl IoStatus {
    /// The error, in the words of QEMU for a job that it ends: all that a paused job says of it.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Failed => Some("Input/output error"),
            Self::NoSpace => Some("No space left on device"),
            Self::Other(other) => Some(other),
        }
    }
}

/// Starts to mirror a disk to another node. An I/O error pauses the job: one that it ended would take QEMU
/// with it where a write of the guest is under way to the target (`immediate_exit` of `mirror_run()`, block/mirror.c). A
/// job that is over stays until it is dismissed, so that its error can be read.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevMirror {
    /// The job's id.
    pub job_id: String,
    /// The node to copy from.
    pub device: String,
    /// The node to copy to, of the same size.
    pub target: String,
    /// What of `device` is copied.
    pub sync: MirrorSync,
    /// Bytes per second of the background copy. 0 means no limit.
    pub speed: u64,
    /// How the guest's writes are mirrored.
    pub copy_mode: CopyMode,
    on_source_error: &'static str,
    on_target_error: &'static str,
    auto_dismiss: bool,
}

/// What a mirror copies (`MirrorSyncMode`, qapi/block-core.json).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorSync {
    /// Everything that can be read. QEMU before 10.1 zeroes all of the target first where it can unmap.
    Full,
    /// What is in the topmost image. That is everything where there is no other, and nothing is zeroed first.
    Top,
}

impl MirrorSync {
    /// How to copy all of an image of this format.
    ///
    /// A raw image has no backing file and no cluster that is not its own, so that its top is the whole: holes
    /// are zeroed on the target, one by one, and stay holes.
    #[must_use]
    pub fn whole(format: &str) -> Self {
        match format {
            "raw" => Self::Top,
            _ => Self::Full,
        }
    }
}

impl BlockdevMirror {
    /// A mirror of `device`.
    #[must_use]
    pub fn new(
        job_id: String,
        device: String,
        target: String,
        sync: MirrorSync,
        speed: u64,
        copy_mode: CopyMode,
    ) -> Self {
        Self {
            job_id,
            device,
            target,
            sync,
            speed,
            copy_mode,
            on_source_error: "stop",
            on_target_error: "stop",
            auto_dismiss: false,
        }
    }
}

/// Asks for the block jobs.
#[derive(Debug, Clone, Serialize)]
pub struct QueryBlockJobs;

/// A block job.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobInfo {
    /// Its id.
    pub device: String,
    /// `mirror`, `backup`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes to be processed, as known now: a guest that writes makes it grow.
    pub len: u64,
    /// Bytes processed.
    pub offset: u64,
    /// Whether it could be completed now.
    pub ready: bool,
    /// How far it is.
    pub status: JobStatus,
    /// Whether an error has paused it.
    pub io_status: IoStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether every write reaches the target before it is acknowledged (8.2, mirrors only).
    pub actively_synced: Option<bool>,
}

/// Cancels a job. A mirror that is ready ends gracefully without `force`: it is first brought in step with
/// the source.
#[derive(Debug, Clone, Serialize)]
pub struct BlockJobCancel {
    /// The job's id.
    pub device: String,
    /// At once, without the last of the data.
    pub force: bool,
}

/// Changes how a mirror copies (8.2).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobChange {
    /// The job's id.
    pub id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The new mode: only [`CopyMode::WriteBlocking`] can be changed to.
    pub copy_mode: CopyMode,
}

impl BlockJobChange {
    /// From now on, guest writes wait for the target.
    #[must_use]
    pub fn write_blocking(id: String) -> Self {
        Self {
            id,
            kind: "mirror",
            copy_mode: CopyMode::WriteBlocking,
        }
    }
}

/// Sets a job's limit.
#[derive(Debug, Clone, Serialize)]
pub struct BlockJobSetSpeed {
    /// The job's id.
    pub device: String,
    /// Bytes per second. 0 means no limit.
    pub speed: u64,
}

/// Forgets a job that is over.
#[derive(Debug, Clone, Serialize)]
pub struct JobDismiss {
    /// The job's id.
    pub id: String,
}

commands! {
    BlockdevMirror = "blockdev-mirror", within deadline::QMP_BLOCK => Done;
    QueryBlockJobs = "query-block-jobs", within deadline::QMP_QUICK => Vec<BlockJobInfo>;
    BlockJobCancel = "block-job-cancel", within deadline::QMP_BLOCK => Done;
    BlockJobChange = "block-job-change", within deadline::QMP_QUICK => Done;
    BlockJobSetSpeed = "block-job-set-speed", within deadline::QMP_QUICK => Done;
    JobDismiss = "job-dismiss", within deadline::QMP_QUICK => Done;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirror_is_asked_for_as_qemu_wants_it() {
        for (format, sync) in [("raw", "top"), ("qcow2", "full"), ("throttle", "full")] {
            let mirror = BlockdevMirror::new(
                "j".into(),
                "a".into(),
                "b".into(),
                MirrorSync::whole(format),
                0,
                CopyMode::WriteBlocking,
            );
            assert_eq!(
                serde_json::to_value(mirror).unwrap(),
                json!({
                    "job-id": "j", "device": "a", "target": "b", "sync": sync, "speed": 0,
                    "copy-mode": "write-blocking", "on-source-error": "stop",
                    "on-target-error": "stop", "auto-dismiss": false,
                })
            );
        }
    }
}
