//! Whether a drive holds what it has to: every record that was acknowledged, and nothing else.

use std::ops::Range;

use serde::Serialize;

use super::record::{Content, Record, block_of, first_of};
use crate::traffic::AckRecord;

/// What became of V's writes to one drive.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DriveResult {
    /// Records that the drive acknowledged to V: from 1 to this one.
    pub acknowledged: u64,
    /// Blocks without the last acknowledged record that belongs there.
    pub lost_blocks: Vec<u64>,
    /// Blocks that hold something that nobody wrote.
    pub torn_blocks: Vec<u64>,
    /// Blocks that hold a whole record that belongs elsewhere, or that V never got to.
    pub misplaced_blocks: Vec<u64>,
    /// Blocks that V never wrote to and that are not what they were in the beginning.
    pub altered_blocks: Vec<u64>,
    /// What V was told instead of an acknowledgement, if ever.
    pub error: Option<String>,
    /// The longest of V's writes in ms, by V's clock, which stands still while V is stopped.
    pub longest_write_ms: Option<f64>,
    /// Which record that was.
    pub longest_write_record: Option<u64>,
    /// What the client heard, and when.
    #[serde(skip)]
    pub acks: AckRecord,
}

impl DriveResult {
    /// Whether something was written and all of it is there.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.acknowledged > 0 && self.bad_blocks() == 0 && self.error.is_none()
    }

    /// Blocks that are not what they have to be.
    #[must_use]
    pub fn bad_blocks(&self) -> usize {
        [
            &self.lost_blocks,
            &self.torn_blocks,
            &self.misplaced_blocks,
            &self.altered_blocks,
        ]
        .map(Vec::len)
        .iter()
        .sum()
    }
}

/// What is known about one drive.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) drive: u64,
    /// Records 1 to this one were acknowledged.
    pub(super) acknowledged: u64,
    /// Of so many blocks at the start of the drive, one belongs to each record in turn.
    pub(super) blocks: u64,
    /// Blocks that held record 0 before V wrote anything; all others were empty.
    pub(super) filled: Range<u64>,
}

impl Expected {
    /// The record 0 of a block, with which a drive can be filled beforehand.
    pub(super) fn filler(drive: u64, block: u64) -> Record {
        Record {
            drive,
            number: 0,
            block,
        }
    }

    /// The last acknowledged record that belongs to a block; 0 if there is none.
    fn number(&self, block: u64) -> u64 {
        if block >= self.blocks {
            return 0;
        }
        let (first, last) = (first_of(block, self.blocks), self.acknowledged);
        last.saturating_sub((last + self.blocks - first) % self.blocks)
    }

    /// Looks at one block and takes note of what is wrong with it.
    pub(super) fn check(&self, block: u64, bytes: &[u8], result: &mut DriveResult) {
        let expected = self.number(block);
        let bad = match Content::of(bytes) {
            Content::Torn => &mut result.torn_blocks,
            Content::Empty if expected > 0 => &mut result.lost_blocks,
            Content::Empty if self.filled.contains(&block) => &mut result.altered_blocks,
            Content::Empty => return,
            Content::Record(record) => {
                let at_home = record.drive == self.drive && record.block == block;
                // The last write may have been done and not acknowledged.
                let known = record.number <= self.acknowledged + 1;
                let of_v = record.number > 0 && block_of(record.number, self.blocks) == block;
                if at_home && record.number == 0 && self.filled.contains(&block) {
                    if expected == 0 {
                        return;
                    }
                    &mut result.lost_blocks
                } else if !at_home || !known || !of_v {
                    &mut result.misplaced_blocks
                } else if record.number < expected {
                    &mut result.lost_blocks
                } else {
                    return;
                }
            }
        };
        bad.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::record::SIZE;

    /// A drive of eight blocks: records over the first four, data in the last two.
    fn expected(acknowledged: u64) -> Expected {
        Expected {
            drive: 1,
            acknowledged,
            blocks: 4,
            filled: 6..8,
        }
    }

    fn block(drive: u64, number: u64, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        let record = Record {
            drive,
            number,
            block,
        };
        record.write_to(&mut bytes);
        bytes
    }

    /// What is found if the first blocks hold these numbers, 0 for nothing.
    fn found(acknowledged: u64, numbers: [u64; 4]) -> DriveResult {
        let mut result = DriveResult {
            acknowledged,
            ..DriveResult::default()
        };
        for (at, number) in (0..).zip(numbers) {
            let bytes = match number {
                0 => vec![0; SIZE],
                number => block(1, number, at),
            };
            expected(acknowledged).check(at, &bytes, &mut result);
        }
        result
    }

    #[test]
    fn a_disk_with_every_last_record_is_intact() {
        assert!(found(6, [4, 5, 6, 3]).is_intact());
    }

    #[test]
    fn a_disk_that_was_written_once_in_part_is_intact() {
        assert!(found(2, [0, 1, 2, 0]).is_intact());
        assert!(found(3, [0, 1, 2, 3]).is_intact());
    }

    #[test]
    fn an_acknowledged_record_that_is_missing_is_lost() {
        assert_eq!(found(6, [4, 5, 2, 3]).lost_blocks, [2]);
        assert_eq!(found(6, [4, 5, 0, 3]).lost_blocks, [2]);
        assert_eq!(found(4, [0, 1, 2, 3]).lost_blocks, [0]);
    }

    #[test]
    fn a_write_that_was_not_acknowledged_may_be_there() {
        assert!(found(6, [4, 5, 6, 7]).is_intact());
    }

    #[test]
    fn a_record_that_v_never_got_to_is_misplaced() {
        assert_eq!(found(6, [8, 5, 6, 3]).misplaced_blocks, [0]);
    }

    #[test]
    fn a_record_of_another_block_or_drive_is_misplaced() {
        for bytes in [block(1, 5, 1), block(0, 6, 2)] {
            let mut result = DriveResult::default();
            expected(6).check(2, &bytes, &mut result);
            assert_eq!(result.misplaced_blocks, [2]);
        }
    }

    #[test]
    fn data_that_v_never_wrote_to_has_to_stay() {
        let check = |at: u64, bytes: &[u8]| {
            let mut result = DriveResult::default();
            expected(6).check(at, bytes, &mut result);
            result
        };
        assert_eq!(check(6, &block(1, 0, 6)).bad_blocks(), 0);
        assert_eq!(check(6, &[0; SIZE]).altered_blocks, [6]);
        assert_eq!(check(5, &[0; SIZE]).bad_blocks(), 0);
        assert_eq!(check(5, &block(1, 0, 5)).misplaced_blocks, [5]);
        assert_eq!(check(6, &block(1, 0, 7)).misplaced_blocks, [6]);
    }

    #[test]
    fn a_block_of_nonsense_is_torn() {
        let mut result = DriveResult::default();
        expected(6).check(2, &[7; SIZE], &mut result);
        assert_eq!(result.torn_blocks, [2]);
    }
}
