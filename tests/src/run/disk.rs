//! Acknowledged writes: whether the disks that V ends up with hold every one of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::drives::{self, DriveOptions};
use super::records::DriveResult;
use crate::lab::Lab;
use crate::traffic::{AckCollector, Silence, now_ns};

const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// What V writes to each of its disks during a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLoad {
    /// Numbered 4 KiB records per second, each synchronous; or [`DiskLoad::FLAT_OUT`].
    pub rate: u64,
    /// Over how many blocks of 4 KiB, again and again.
    pub blocks: u64,
}

impl DiskLoad {
    /// As many records as V can write.
    pub const FLAT_OUT: u64 = u64::MAX;
}

/// What became of V's writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DiskResult {
    /// Drive by drive.
    pub drives: Vec<DriveResult>,
    /// Why V could not be asked what it was acknowledged; then only what the client heard counts.
    pub unsettled: Option<String>,
    /// When V was told to stop writing, in ns since the epoch.
    pub until_ns: u64,
}

impl DiskResult {
    /// Whether something was written to every drive and all of it is there.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.unsettled.is_none()
            && !self.drives.is_empty()
            && self.drives.iter().all(DriveResult::is_intact)
    }

    /// Records that were acknowledged, over all drives.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.drives.iter().map(|drive| drive.acknowledged).sum()
    }

    /// Blocks that lack an acknowledged record, over all drives.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.sum(|drive| drive.lost_blocks.len())
    }

    /// Blocks that hold something that was not written there, over all drives.
    #[must_use]
    pub fn torn(&self) -> usize {
        self.sum(|drive| drive.bad_blocks() - drive.lost_blocks.len())
    }

    /// The longest time without an acknowledgement on any drive, as the client saw it, of which at
    /// least a part lies between two moments.
    #[must_use]
    pub fn longest_stall(&self, from_ns: u64, to_ns: u64) -> Option<Silence> {
        let to_ns = to_ns.min(self.until_ns);
        self.drives
            .iter()
            .filter_map(|drive| drive.acks.longest_stall(from_ns, to_ns))
            .max_by_key(|stall| stall.ended_ns - stall.began_ns)
    }

    /// The longest write of any drive in ms, by V's own clock, and when the client heard of its end.
    #[must_use]
    pub fn longest_write(&self) -> Option<(f64, Option<u64>)> {
        let longest = self.drives.iter().filter_map(|drive| {
            let record = drive.longest_write_record?;
            let mut heard = drive.acks.heard.iter();
            let ended = heard.find(|(number, _)| *number >= record);
            Some((drive.longest_write_ms?, ended.map(|(_, at_ns)| *at_ns)))
        });
        longest.max_by(|one, other| one.0.total_cmp(&other.0))
    }

    fn sum(&self, count: impl Fn(&DriveResult) -> usize) -> usize {
        self.drives.iter().map(count).sum()
    }
}

/// Starts V's writes to all of its drives; V reports to the collector.
pub(super) fn start(lab: &Lab, load: DiskLoad, drives: usize, to: &AckCollector) -> Result<()> {
    let rate = match load.rate {
        DiskLoad::FLAT_OUT => "max".to_owned(),
        rate => rate.to_string(),
    };
    let command = format!("disk {rate} {} {drives} {}", load.blocks, to.port());
    lab.guest_command(&command).map(drop)
}

/// Stops V's writes and compares the images with what V, and the client, know to be acknowledged.
pub(super) fn settle(
    lab: &Lab,
    load: DiskLoad,
    options: DriveOptions,
    images: &[PathBuf],
    acks: AckCollector,
) -> Result<DiskResult> {
    let until_ns = now_ns();
    let (status, unsettled) = match stop_writes(lab) {
        Ok(status) => (status, None),
        Err(err) => (String::new(), Some(format!("{err:#}"))),
    };
    let mut result = DiskResult {
        drives: Vec::new(),
        unsettled,
        until_ns,
    };
    for ((drive, image), acks) in (0..).zip(images).zip(acks.stop()?) {
        let number = |name: &str| {
            word(&status, &format!("{name}{drive}")).and_then(|value| value.parse::<u64>().ok())
        };
        let mut of_drive = DriveResult {
            // V tells nobody of a record before it is acknowledged, so neither can know too much.
            acknowledged: number("acknowledged").unwrap_or(0).max(acks.last()),
            error: word(&status, &format!("error{drive}")).map(str::to_owned),
            longest_write_ms: number("longest_us").map(|micros| micros as f64 / 1e3),
            longest_write_record: number("longest_at"),
            acks,
            ..DriveResult::default()
        };
        drives::compare(image, drive, load.blocks, options.filled_mib, &mut of_drive)?;
        result.drives.push(of_drive);
    }
    Ok(result)
}

/// Tells V to stop, waits until no write is on its way any more, and returns V's status.
fn stop_writes(lab: &Lab) -> Result<String> {
    lab.guest_command("disk 0")?;
    let deadline = Instant::now() + SETTLE_DEADLINE;
    loop {
        let status = lab
            .guest_command("status")
            .context("ask V for its status")?;
        let active = |word: &str| word.starts_with("active") && word.ends_with("=1");
        if !status.split_whitespace().any(active) {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            bail!("V does not stop writing: {status}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The value of one `name=value` word.
fn word<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_is_read_by_name() {
        let status = "a=1 acknowledged1=7 error1=x";
        assert_eq!(word(status, "acknowledged1"), Some("7"));
        assert_eq!(word(status, "acknowledged"), None);
    }

    #[test]
    fn one_bad_drive_spoils_the_whole() {
        let good = DriveResult {
            acknowledged: 5,
            ..DriveResult::default()
        };
        let bad = DriveResult {
            lost_blocks: vec![3],
            ..good.clone()
        };
        let mut result = DiskResult {
            drives: vec![good.clone(), good],
            ..DiskResult::default()
        };
        assert!(result.is_intact());
        result.drives.push(bad);
        assert_eq!((result.is_intact(), result.lost()), (false, 1));
    }
}
