//! RAM with a dirty bitmap.

pub(super) const PAGE: usize = 4096;
/// Pages that hold something from the start: the time that the first pass takes.
const IN_USE: usize = 2048;
/// Pages that packets are written to, in turn.
const WORKING_SET: usize = 256;
/// Pages that one packet dirties.
const PER_PACKET: usize = 3;

/// The VM's memory.
#[derive(Debug)]
pub(super) struct Ram {
    bytes: Vec<u8>,
    dirty: Vec<bool>,
    /// Never written: a page of zeros.
    untouched: Vec<bool>,
    packets: usize,
}

impl Ram {
    pub(super) fn new(size: u64) -> Self {
        let pages = usize::try_from(size).unwrap_or(usize::MAX) / PAGE;
        let mut ram = Self {
            bytes: vec![0; pages * PAGE],
            dirty: vec![true; pages],
            untouched: vec![true; pages],
            packets: 0,
        };
        for page in 0..IN_USE.min(pages) {
            let number = page as u64;
            ram.write(page, &[number.to_le_bytes(); 64].concat());
        }
        ram
    }

    pub(super) fn pages(&self) -> usize {
        self.dirty.len()
    }

    /// A packet leaves traces all over the guest's memory.
    pub(super) fn note(&mut self, packet: &[u8]) {
        for _ in 0..PER_PACKET {
            self.packets += 1;
            let page = (self.packets * 31 % WORKING_SET).min(self.pages() - 1);
            self.write(page, &packet[..packet.len().min(PAGE)]);
        }
    }

    /// Content of a page, or nothing for zeros.
    pub(super) fn page(&self, page: usize) -> Option<&[u8]> {
        (!self.untouched[page]).then(|| &self.bytes[page * PAGE..(page + 1) * PAGE])
    }

    pub(super) fn write(&mut self, page: usize, content: &[u8]) {
        self.bytes[page * PAGE..page * PAGE + content.len()].copy_from_slice(content);
        self.dirty[page] = true;
        self.untouched[page] = false;
    }

    /// All pages are dirty: a migration begins.
    pub(super) fn forget_what_was_sent(&mut self) {
        self.dirty.fill(true);
    }

    /// The dirty pages, which are clean from now on.
    pub(super) fn take_dirty(&mut self) -> Vec<usize> {
        let dirty = self.dirty_pages().collect();
        self.dirty.fill(false);
        dirty
    }

    pub(super) fn dirty_pages(&self) -> impl Iterator<Item = usize> + '_ {
        let numbered = self.dirty.iter().enumerate();
        numbered.filter(|(_, dirty)| **dirty).map(|(page, _)| page)
    }

    /// Of all that was ever written. (FNV-1a over words.)
    pub(super) fn checksum(&self) -> u64 {
        let touched = (0..self.pages()).filter_map(|page| self.page(page));
        let words = touched.flat_map(|page| page.chunks_exact(8));
        words.fold(0xcbf2_9ce4_8422_2325, |sum, word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            (sum ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_changes_memory_and_its_dirty_pages_bring_a_copy_up_to_date() {
        let mut ram = Ram::new(16 << 20);
        let mut copy = Ram::new(16 << 20);
        assert_eq!(ram.take_dirty().len(), ram.pages());
        ram.note(b"a packet");
        assert_ne!(ram.checksum(), copy.checksum());
        let dirty = ram.take_dirty();
        assert_eq!(dirty.len(), PER_PACKET);
        for page in dirty {
            copy.write(page, ram.page(page).unwrap());
        }
        assert_eq!(ram.checksum(), copy.checksum());
    }
}
