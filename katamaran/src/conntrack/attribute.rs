//! Netlink attributes: length u16, kind u16, value, padded to 4.

use netlink_packet_core::{NLA_F_NESTED, NlasIterator};

const HEADER: usize = 4;

/// Attributes being written behind one another.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(at);
    }

    /// An attribute whose value is attributes.
    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let at = self.open(kind | NLA_F_NESTED);
        write(self);
        self.close(at);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = u16::try_from(self.bytes.len() - at)
            .expect("an entry is a few hundred bytes, an attribute may have 64 KiB");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        let padded = self.bytes.len().next_multiple_of(HEADER);
        self.bytes.resize(padded, 0);
    }
}

/// A value that holds attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind; `None` also where the attributes are garbled before it.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        NlasIterator::new(self.0)
            .map_while(Result::ok)
            .find(|attribute| attribute.kind() == kind)
            .and_then(|attribute| {
                attribute
                    .into_inner()
                    .get(HEADER..attribute.length().into())
            })
    }

    pub(super) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub(super) fn bytes<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)?.try_into().ok()
    }

    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        self.bytes(kind).map(u8::from_be_bytes)
    }

    pub(super) fn be16(self, kind: u16) -> Option<u16> {
        self.bytes(kind).map(u16::from_be_bytes)
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.bytes(kind).map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut writer = Writer::default();
        writer.put(7, &[1]);
        writer.nest(8, |inner| inner.put(1, &[0, 0, 2, 3]));
        assert_eq!(writer.bytes().len(), 8 + 4 + 8);
        assert_eq!(
            writer.bytes()[..4],
            [5_u16.to_ne_bytes(), 7_u16.to_ne_bytes()].concat()
        );
        let attributes = Attributes(writer.bytes());
        assert_eq!(attributes.u8(7), Some(1));
        assert_eq!(attributes.nested(8).unwrap().be32(1), Some(0x0203));
        assert_eq!(attributes.get(9), None);
        assert_eq!(attributes.be16(7), None, "of another length");
    }

    #[test]
    fn cut_attributes_give_nothing_and_no_panic() {
        let mut writer = Writer::default();
        writer.put(1, &[1, 2, 3, 4]);
        for length in 0..8 {
            assert_eq!(Attributes(&writer.bytes()[..length]).get(1), None);
        }
    }
}
