//! A record: one block of a disk that says what it is, so that a lost one, a torn one and one in
//! the wrong place can be told apart. The guest writes them, the lab reads them.
//!
//! | bytes | what, little-endian |
//! |---|---|
//! | 0..8 | the mark of a record |
//! | 8..16 | the drive, from 0 |
//! | 16..24 | the number, from 1; 0 is data that was there before |
//! | 24..32 | the block |
//! | 32..4088 | a sequence that depends on all of these |
//! | 4088..4096 | a checksum of all before it |

/// Bytes of a record, and of a block.
pub(crate) const SIZE: usize = 4096;

/// Records that follow each other lie so many blocks apart. A mirror keeps account in pieces of 64 KiB,
/// so that each record is a piece of its own to it, as with the writes of a database.
const STRIDE: u64 = 17;

const MARK: u64 = u64::from_le_bytes(*b"ktm-disk");
const WORDS: usize = SIZE / 8;

/// What a record says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) drive: u64,
    pub(crate) number: u64,
    pub(crate) block: u64,
}

/// The block of a record on a drive with so many blocks for records.
pub(crate) fn block_of(number: u64, blocks: u64) -> u64 {
    number % blocks * stride(blocks) % blocks
}

/// The first record that belongs to a block; the next ones come `blocks` later each. What is called record
/// 0 here is never written.
pub(crate) fn first_of(block: u64, blocks: u64) -> u64 {
    let stride = stride(blocks);
    let laps = (0..stride).map(|lap| block + lap * blocks);
    laps.filter(|at| at % stride == 0)
        .map(|at| at / stride)
        .next()
        .unwrap_or(0)
}

/// The two numbers may have no divisor in common, or a lap would not reach every block.
fn stride(blocks: u64) -> u64 {
    if blocks.is_multiple_of(STRIDE) {
        1
    } else {
        STRIDE
    }
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeros.
    Empty,
    /// A whole record.
    Record(Record),
    /// Something that nobody wrote: most likely parts of two records.
    Torn,
}

impl Record {
    /// Fills a block; `block` is [`SIZE`] bytes long.
    pub(crate) fn write_to(self, block: &mut [u8]) {
        let (words, _) = block.as_chunks_mut::<8>();
        let mut sum = 0;
        let mut filler = mix(self.drive, mix(self.number, self.block));
        for (at, bytes) in words.iter_mut().enumerate() {
            let word = match at {
                0 => MARK,
                1 => self.drive,
                2 => self.number,
                3 => self.block,
                LAST => sum,
                _ => {
                    filler = next(filler);
                    filler
                }
            };
            sum = mix(sum, word);
            *bytes = word.to_le_bytes();
        }
    }
}

const LAST: usize = WORDS - 1;

impl Content {
    /// Looks at a block of [`SIZE`] bytes.
    pub(crate) fn of(block: &[u8]) -> Self {
        let (words, _) = block.as_chunks::<8>();
        let word = |at: usize| words.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let sum = (0..LAST).fold(0, |sum, at| mix(sum, word(at)));
        if words.len() == WORDS && word(0) == MARK && word(LAST) == sum {
            Self::Record(Record {
                drive: word(1),
                number: word(2),
                block: word(3),
            })
        } else if block.iter().all(|byte| *byte == 0) {
            Self::Empty
        } else {
            Self::Torn
        }
    }
}

/// One step of a checksum: every bit of both goes into it, and the order counts.
fn mix(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
}

/// Marsaglia's xorshift; zero is not to happen.
fn next(state: u64) -> u64 {
    let mut state = state | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64) -> Vec<u8> {
        let mut block = vec![0; SIZE];
        let record = Record {
            drive: 2,
            number,
            block: 40,
        };
        record.write_to(&mut block);
        block
    }

    #[test]
    fn every_block_has_a_record_of_its_own_in_every_lap() {
        for blocks in [1, 4, 17, 34, 100, 4096] {
            let mut seen: Vec<u64> = (0..blocks).map(|n| block_of(n, blocks)).collect();
            for (number, block) in (0..).zip(&seen) {
                assert_eq!(first_of(*block, blocks), number, "of {blocks}");
                assert_eq!(block_of(number + blocks, blocks), *block);
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..blocks));
        }
    }

    #[test]
    fn a_record_says_what_it_is() {
        let record = Record {
            drive: 2,
            number: 7,
            block: 40,
        };
        assert_eq!(Content::of(&block(7)), Content::Record(record));
    }

    #[test]
    fn a_block_of_zeros_is_empty() {
        assert_eq!(Content::of(&[0; SIZE]), Content::Empty);
    }

    #[test]
    fn parts_of_two_records_are_torn_wherever_the_tear_is() {
        let (old, new) = (block(7), block(9));
        for tear in (8..SIZE).step_by(8) {
            let mixed: Vec<u8> = new[..tear].iter().chain(&old[tear..]).copied().collect();
            // Before the number both are the same, so that is where the tear begins to show.
            let expected = match tear {
                ..=16 => Content::of(&old),
                _ => Content::Torn,
            };
            assert_eq!(Content::of(&mixed), expected, "{tear}");
        }
    }

    #[test]
    fn a_single_wrong_bit_is_torn() {
        for at in [0, 9, 17, 30, 33, 2000, 4087, 4095] {
            let mut bytes = block(7);
            bytes[at] ^= 4;
            assert_eq!(Content::of(&bytes), Content::Torn, "{at}");
        }
    }
}
