//! The figures of V's disks in one run.

use serde_json::Value;

use crate::run::{DiskResult, MigrationRun};

/// Before and after V's STOP, this much belongs to the cutover.
const AROUND_NS: u64 = 1_000_000_000;
const MIB: f64 = 1_048_576.0;

/// What one run shows of the disks. What was not measured is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct DiskFigures {
    /// Records that were acknowledged, on all drives.
    pub(super) acknowledged: u64,
    /// Blocks without their last acknowledged record.
    pub(super) lost: usize,
    /// Blocks that hold what was never written there.
    pub(super) torn: usize,
    /// Records per second before V's STOP, over all drives.
    pub(super) rate: Option<f64>,
    /// The longest time around V's STOP without an acknowledgement on some drive, as the client saw it.
    pub(super) stall_ms: Option<f64>,
    /// V's longest write, by its own clock.
    pub(super) write_ms: Option<f64>,
    /// When that one ended, in ms after V's STOP.
    pub(super) write_at_ms: Option<f64>,
    /// Bytes that B lacked at COMMIT, on all drives, by katamaran's report.
    pub(super) backlog: Option<u64>,
    /// MiB per second of the mirrors together, by katamaran's report.
    pub(super) mirrored: Option<f64>,
}

impl DiskFigures {
    /// `None` if V wrote to no disk.
    pub(super) fn of(run: &MigrationRun) -> Option<Self> {
        let disk = run.client.disk.as_ref()?;
        let report = run.source.as_ref().and_then(|side| side.report.as_ref());
        let drives = report
            .and_then(|report| report["disks"].as_array())
            .filter(|drives| !drives.is_empty());
        Some(Self {
            acknowledged: disk.acknowledged(),
            lost: disk.lost(),
            torn: disk.torn(),
            rate: run.stop_ns.and_then(|stop_ns| rate_until(disk, stop_ns)),
            stall_ms: run.stop_ns.and_then(|stop_ns| {
                let stall = disk.longest_stall(stop_ns - AROUND_NS, stop_ns + AROUND_NS);
                Some(stall?.ms())
            }),
            write_ms: disk.longest_write().map(|(ms, _)| ms),
            write_at_ms: disk
                .longest_write()
                .and_then(|(_, ended_ns)| Some((ended_ns? as f64 - run.stop_ns? as f64) / 1e6)),
            backlog: drives.and_then(|drives| backlog(drives)),
            mirrored: drives.and_then(|drives| mirrored(drives)),
        })
    }
}

fn rate_until(disk: &DiskResult, until_ns: u64) -> Option<f64> {
    disk.drives
        .iter()
        .map(|drive| drive.acks.rate(0, until_ns))
        .sum()
}

/// Nothing unless every drive tells.
fn backlog(drives: &[Value]) -> Option<u64> {
    let of = |drive: &Value| drive["backlog_at_commit"].as_u64();
    drives.iter().map(of).sum()
}

/// All that was copied until the last drive was ready, by the time that took: drives are mirrored at
/// the same time.
fn mirrored(drives: &[Value]) -> Option<f64> {
    let mut copied = 0.0;
    let mut longest: f64 = 0.0;
    for drive in drives {
        let seconds = drive["seconds"].as_f64()?;
        copied += drive["bandwidth"].as_f64()? * seconds;
        longest = longest.max(seconds);
    }
    (longest > 0.0).then(|| copied / MIB / longest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_backlog_is_known_if_every_drive_tells() {
        let known = [
            json!({"backlog_at_commit": 0}),
            json!({"backlog_at_commit": 4096}),
        ];
        assert_eq!(backlog(&known), Some(4096));
        assert_eq!(backlog(&[json!({"backlog_at_commit": 0}), json!({})]), None);
    }

    #[test]
    fn drives_are_mirrored_at_the_same_time() {
        let drives = [
            json!({"bandwidth": 10 << 20, "seconds": 1.0}),
            json!({"bandwidth": 15 << 20, "seconds": 2.0}),
        ];
        assert_eq!(mirrored(&drives), Some(20.0));
    }
}
