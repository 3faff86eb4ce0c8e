//! Checksums of a drive's blocks, to compare two drives that are far apart.
//!
//! XXH3 in 128 bits: what is looked for is an accident, not an adversary, and it is as fast as the drive.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use crate::nbd::{NbdError, Reader};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << 20;
/// Blocks compared at a time.
pub(crate) const BATCH: u64 = 64;
/// Bytes of a checksum.
pub(crate) const LENGTH: usize = 16;

/// A drive that is read for its checksums.
#[derive(Debug)]
pub(crate) struct Checksummer {
    reader: Reader,
    buffer: Vec<u8>,
}

impl Checksummer {
    /// Opens the drive that QEMU exports at `socket`.
    pub(crate) async fn open(socket: &Path, drive: &str) -> Result<Self, NbdError> {
        Ok(Self {
            reader: Reader::open(socket, drive).await?,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.reader.size()
    }

    /// The checksums of up to `blocks` blocks from number `first` on, one after the other. The last block
    /// of the drive may be shorter.
    pub(crate) async fn batch(&mut self, first: u64, blocks: u64) -> Result<Vec<u8>, NbdError> {
        let mut checksums = Vec::new();
        for (offset, length) in spans(self.size(), first, blocks) {
            self.buffer.resize(length, 0);
            self.reader.read(offset, &mut self.buffer).await?;
            checksums.extend(xxh3_128(&self.buffer).to_be_bytes());
        }
        Ok(checksums)
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        if let Err(error) = self.reader.close().await {
            tracing::debug!(%error, "a drive that was compared was not closed well");
        }
    }
}

/// (offset, length) of up to `blocks` blocks of a drive of `size` bytes.
fn spans(size: u64, first: u64, blocks: u64) -> impl Iterator<Item = (u64, usize)> {
    (first..first.saturating_add(blocks)).map_while(move |block| {
        let offset = block.checked_mul(BLOCK)?;
        let length = size.checked_sub(offset)?.min(BLOCK);
        Some((offset, usize::try_from(length).ok()?)).filter(|(_, length)| *length > 0)
    })
}

/// The numbers of the blocks whose checksums differ, `first` being the number of the first. What one side
/// has and the other has not differs, too.
pub(crate) fn differences(first: u64, ours: &[u8], theirs: &[u8]) -> Vec<u64> {
    let (mut a, mut b) = (ours.chunks(LENGTH), theirs.chunks(LENGTH));
    let mut different = Vec::new();
    for number in first.. {
        match (a.next(), b.next()) {
            (None, None) => break,
            (a, b) if a != b => different.push(number),
            _ => {}
        }
    }
    different
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_read_whole_and_once() {
        let size = 2 * BLOCK + 512;
        let all: Vec<_> = spans(size, 0, 64).collect();
        let mib = usize::try_from(BLOCK).unwrap();
        assert_eq!(all, [(0, mib), (BLOCK, mib), (2 * BLOCK, 512)]);
        assert_eq!(spans(size, 1, 1).collect::<Vec<_>>(), [(BLOCK, mib)]);
        assert_eq!(spans(size, 3, 64).count(), 0);
        assert_eq!(spans(2 * BLOCK, 0, 64).count(), 2);
        assert_eq!(spans(0, 0, 64).count(), 0);
        assert_eq!(spans(u64::MAX, u64::MAX - 1, 64).count(), 0);
    }

    #[test]
    fn every_difference_is_found_also_at_the_end() {
        let drive = |blocks: &[u8]| -> Vec<u8> {
            blocks
                .iter()
                .flat_map(|b| xxh3_128(&[*b; 64]).to_be_bytes())
                .collect()
        };
        assert_eq!(
            differences(7, &drive(&[1, 2, 3]), &drive(&[1, 2, 3])),
            Vec::<u64>::new()
        );
        assert_eq!(
            differences(7, &drive(&[1, 2, 3]), &drive(&[9, 2, 4])),
            [7, 9]
        );
        assert_eq!(
            differences(7, &drive(&[1, 2, 3]), &drive(&[1])),
            [8, 9],
            "a shorter answer is no proof"
        );
    }
}
