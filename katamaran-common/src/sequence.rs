//! What running numbers that wrap tell about gaps, late packets and duplicates.

use crate::layout::Sequence;

/// Bits of the running number in the outer header: IPv4 identification.
pub const NUMBER_BITS_V4: u32 = 16;
/// Bits of the running number in the outer header: IPv6 flow label.
pub const NUMBER_BITS_V6: u32 = 20;

impl Sequence {
    /// Notes `packets` packets numbered from `number` on, of which only `bits` bits are known.
    ///
    /// Not atomic: concurrent callers may miscount gaps against late packets. The exact proof is
    /// the digest; this is the hint where in the stream to look.
    #[inline(always)]
    pub fn note(&mut self, number: u32, packets: u32, bits: u32) {
        let modulus = 1u64 << bits;
        if self.seen == 0 {
            // Start one whole turn up, so that what comes late still has a place below.
            self.first = modulus + number as u64;
            self.next = self.first + packets as u64;
            self.seen = packets as u64;
            return;
        }
        let ahead = (number as u64).wrapping_sub(self.next) & (modulus - 1);
        if ahead < modulus / 2 {
            self.skipped += ahead;
            self.next += ahead + packets as u64;
        } else {
            self.late += packets as u64;
            let behind = modulus - ahead;
            let first = self.next.wrapping_sub(behind);
            if first < self.first {
                self.first = first;
            }
        }
        self.seen += packets as u64;
    }

    /// Packets between the first and the highest number that were not seen (negative: more were
    /// seen than there are numbers, so some came twice).
    #[must_use]
    pub fn missing(&self) -> i64 {
        (self.next.wrapping_sub(self.first) as i64).wrapping_sub(self.seen as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(numbers: &[(u32, u32)]) -> Sequence {
        let mut sequence = Sequence::default();
        for (number, packets) in numbers {
            sequence.note(*number, *packets, NUMBER_BITS_V4);
        }
        sequence
    }

    #[test]
    fn an_unbroken_run_misses_nothing_across_the_wrap() {
        let sequence = noted(&[(65_534, 1), (65_535, 3), (2, 1), (3, 10)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (0, 0, 0)
        );
        assert_eq!(sequence.seen, 15);
    }

    #[test]
    fn a_gap_is_missing() {
        let sequence = noted(&[(10, 1), (13, 1)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (2, 0, 2)
        );
    }

    #[test]
    fn a_late_packet_fills_its_gap() {
        let sequence = noted(&[(10, 1), (12, 1), (11, 1), (13, 1)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (1, 1, 0)
        );
    }

    #[test]
    fn a_duplicate_is_one_too_many() {
        let sequence = noted(&[(10, 1), (11, 1), (11, 1)]);
        assert_eq!(
            (sequence.skipped, sequence.late, sequence.missing()),
            (0, 1, -1)
        );
    }

    #[test]
    fn a_packet_older_than_the_first_is_counted_in() {
        let sequence = noted(&[(0, 1), (65_535, 1), (1, 1)]);
        assert_eq!((sequence.late, sequence.missing()), (1, 0));
    }
}
