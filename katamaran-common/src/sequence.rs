//! What running numbers that wrap tell about gaps, late packets and duplicates.

use crate::layout::Sequence;

/// Bits of the running number in the outer header: IPv4 identification.
pub const NUMBER_BITS_V4: u32 = 16;
/// Bits of the running number in the outer header: IPv6 flow label.
pub const NUMBER_BITS_V6: u32 = 20;

/// How many numbers a packet with this `number`, of which `bits` bits are known, jumps over when `next` is expected.
/// `None`: it is below, so it is late, or a duplicate.
///
/// What is less than half a turn ahead is ahead (RFC 1982).
#[inline(always)]
#[must_use]
pub fn jump(next: u64, number: u32, bits: u32) -> Option<u64> {
    let modulus = 1u64 << bits;
    let ahead = u64::from(number).wrapping_sub(next) & (modulus - 1);
    (ahead < modulus / 2).then_some(ahead)
}

impl Sequence {
    /// Packets below the highest number that were not seen (negative: more were seen than there are numbers, so some
    /// came twice). Exact once no CPU is at work on it: each packet is added to `seen` once, and `next` is a maximum.
    #[must_use]
    pub fn missing(&self) -> i64 {
        (self.next as i64).wrapping_sub(self.seen as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the program does it, on one CPU.
    fn noted(numbers: &[(u32, u32)]) -> Sequence {
        let mut sequence = Sequence::default();
        for (number, packets) in numbers {
            let packets = u64::from(*packets);
            match jump(sequence.next, *number, NUMBER_BITS_V4) {
                Some(skipped) => {
                    sequence.next += skipped + packets;
                    sequence.skipped += skipped;
                }
                None => sequence.late += packets,
            }
            sequence.seen += packets;
        }
        sequence
    }

    #[test]
    fn an_unbroken_run_misses_nothing_across_the_wrap() {
        let turn = [(0, 32_767), (32_767, 32_769)];
        let sequence = noted(&[turn, turn, turn].concat());
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (0, 0, 0)
        );
        assert_eq!(sequence.seen, 3 * 65_536);
    }

    #[test]
    fn a_gap_is_missing() {
        let sequence = noted(&[(0, 1), (3, 1)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (2, 0, 2)
        );
    }

    #[test]
    fn what_was_lost_before_the_first_that_came_is_missing() {
        let sequence = noted(&[(4, 2)]);
        assert_eq!((sequence.skipped, sequence.missing()), (4, 4));
    }

    #[test]
    fn a_late_packet_fills_its_gap() {
        let sequence = noted(&[(0, 1), (2, 1), (1, 1), (3, 1)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (1, 1, 0)
        );
    }

    #[test]
    fn a_duplicate_is_one_too_many() {
        let sequence = noted(&[(0, 1), (1, 1), (1, 1)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (0, 1, -1)
        );
    }
}
