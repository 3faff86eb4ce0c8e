//! Acknowledged writes: whether the disk that V ends up with holds every one of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::lab::Lab;

const BLOCK: u64 = 4096;
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// What V writes to its disk during a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLoad {
    /// Numbered 4 KiB records per second, each synchronous.
    pub rate: u64,
    /// Over how many blocks of 4 KiB, again and again.
    pub blocks: u64,
}

/// What became of V's writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskResult {
    /// Records that the disk acknowledged to V.
    pub acknowledged: u64,
    /// Blocks that hold an older record than the last acknowledged one, or none.
    pub stale_blocks: Vec<u64>,
    /// Blocks that hold something V never wrote.
    pub torn_blocks: Vec<u64>,
    /// What V was told instead of an acknowledgement, if ever.
    pub error: Option<String>,
}

impl DiskResult {
    /// Whether something was written and all of it is there.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.acknowledged > 0
            && self.stale_blocks.is_empty()
            && self.torn_blocks.is_empty()
            && self.error.is_none()
    }
}

/// Starts V's writes.
pub(super) fn start(lab: &Lab, load: DiskLoad) -> Result<()> {
    lab.guest_command(&format!("disk {} {}", load.rate, load.blocks))
        .map(drop)
}

/// Stops V's writes and compares `image` with what V was acknowledged.
pub(super) fn settle(lab: &Lab, load: DiskLoad, image: &Path) -> Result<DiskResult> {
    lab.guest_command("disk 0 0")?;
    let deadline = Instant::now() + SETTLE_DEADLINE;
    let mut status = lab.guest_command("status")?;
    // A write may still be on its way: two equal answers some time apart say that none is.
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let next = lab.guest_command("status")?;
        let settled = word(&next, "acknowledged") == word(&status, "acknowledged");
        status = next;
        if settled {
            break;
        }
        if Instant::now() >= deadline {
            bail!("V does not stop writing: {status}");
        }
    }
    let acknowledged = word(&status, "acknowledged")
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no count of records in {status:?}"))?;
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let mut result = compare(acknowledged, load.blocks, |block| {
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, block * BLOCK)
            .with_context(|| format!("read block {block} of {}", image.display()))?;
        Ok(bytes)
    })?;
    result.error = status
        .split_once(" error=")
        .map(|(_, error)| error.to_owned());
    Ok(result)
}

/// The value of one `name=value` word.
fn word<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Record *n* fills block *n* mod `blocks`, from 1 to `acknowledged`.
fn compare(
    acknowledged: u64,
    blocks: u64,
    read: impl Fn(u64) -> Result<Vec<u8>>,
) -> Result<DiskResult> {
    let mut result = DiskResult {
        acknowledged,
        ..DiskResult::default()
    };
    for block in 0..blocks.min(acknowledged + 1) {
        // The last number up to `acknowledged` that belongs there; there is no record 0.
        let expected = acknowledged - (acknowledged + blocks - block) % blocks;
        let bytes = read(block)?;
        let mut words = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let first = words.next().unwrap_or(0);
        if words.any(|word| word != first) || (first != 0 && first % blocks != block) {
            result.torn_blocks.push(block);
        } else if first < expected {
            result.stale_blocks.push(block);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(numbers: &[u64]) -> impl Fn(u64) -> Result<Vec<u8>> {
        let numbers = numbers.to_vec();
        move |block| Ok(numbers[usize::try_from(block)?].to_le_bytes().repeat(512))
    }

    #[test]
    fn a_disk_with_every_last_record_is_intact() {
        // Records 1 to 6 over 4 blocks.
        let result = compare(6, 4, disk(&[4, 5, 6, 3])).unwrap();
        assert!(result.is_intact(), "{result:?}");
    }

    #[test]
    fn a_disk_that_was_written_once_in_part_is_intact() {
        let result = compare(2, 4, disk(&[0, 1, 2, 0])).unwrap();
        assert!(result.is_intact(), "{result:?}");
    }

    #[test]
    fn an_acknowledged_record_that_is_missing_makes_its_block_stale() {
        assert_eq!(
            compare(6, 4, disk(&[4, 5, 2, 3])).unwrap().stale_blocks,
            [2]
        );
    }

    #[test]
    fn a_write_that_was_not_acknowledged_may_be_there() {
        assert!(compare(6, 4, disk(&[4, 5, 6, 7])).unwrap().is_intact());
    }

    #[test]
    fn a_record_in_the_wrong_place_is_torn() {
        assert_eq!(compare(6, 4, disk(&[4, 5, 6, 6])).unwrap().torn_blocks, [3]);
    }

    #[test]
    fn the_status_line_is_read_by_name() {
        assert_eq!(
            word("a=1 acknowledged=7 error=x y", "acknowledged"),
            Some("7")
        );
    }
}
