//! The running kernel's own description of its types (`/sys/kernel/btf/vmlinux`).
//!
//! Reads as much as is needed to find fields of structures and names of enumerators. The format is
//! described in the kernel's Documentation/bpf/btf.rst.

use std::collections::HashMap;
use std::fs;
use std::io;

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// What is missing in the kernel's description of itself.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// There is none.
    #[error("read {PATH}")]
    Read(#[source] io::Error),
    /// It is not what the format says.
    #[error("{PATH} is malformed")]
    Malformed,
    /// A type is not described.
    #[error("the kernel has no type {name}")]
    NoType {
        /// Its name.
        name: &'static str,
    },
    /// A structure has no such field.
    #[error("the kernel's {structure} has no field {field}")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The path of the field.
        field: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Type {
    name: u32,
    info: u32,
    /// Size in bytes, or the type referred to.
    size_or_type: u32,
    /// Where the type's own data starts.
    data: usize,
}

impl Type {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn members(self) -> usize {
        (self.info & 0xffff) as usize
    }

    fn has_bitfields(self) -> bool {
        self.info >> 31 == 1
    }
}

mod kind {
    pub(super) const POINTER: u32 = 2;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const FUNCTION: u32 = 13;
    pub(super) const TYPE_TAG: u32 = 18;
}

/// A parsed description.
pub(super) struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    types: Vec<Type>,
}

impl Btf {
    /// That of the running kernel.
    pub(super) fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(fs::read(PATH).map_err(BtfError::Read)?).ok_or(BtfError::Malformed)
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        if word16(&bytes, 0)? != MAGIC {
            return None;
        }
        let header = word(&bytes, 4)? as usize;
        let first = header + word(&bytes, 8)? as usize;
        let end = first + word(&bytes, 12)? as usize;
        let strings = header + word(&bytes, 16)? as usize;
        // Type 0 is void.
        let mut types = vec![Type {
            name: 0,
            info: 0,
            size_or_type: 0,
            data: 0,
        }];
        let mut at = first;
        while at < end {
            let found = Type {
                name: word(&bytes, at)?,
                info: word(&bytes, at + 4)?,
                size_or_type: word(&bytes, at + 8)?,
                data: at + 12,
            };
            at = found.data + data_length(found)?;
            types.push(found);
        }
        Some(Self {
            bytes,
            strings,
            types,
        })
    }

    fn name(&self, offset: u32) -> &[u8] {
        let start = self.strings + offset as usize;
        let rest = self.bytes.get(start..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn find(&self, kind: u32, name: &'static str) -> Result<Type, BtfError> {
        self.types
            .iter()
            .find(|found| found.kind() == kind && self.name(found.name) == name.as_bytes())
            .copied()
            .ok_or(BtfError::NoType { name })
    }

    /// The byte offset of a field; `path` is dotted and may go through embedded structures.
    pub(super) fn offset(
        &self,
        structure: &'static str,
        path: &'static str,
    ) -> Result<u32, BtfError> {
        let missing = BtfError::NoField {
            structure,
            field: path,
        };
        let mut current = self.find(kind::STRUCT, structure)?;
        let mut bits = 0;
        for field in path.split('.') {
            let Some((offset, of_type)) = self.field(current, field.as_bytes()) else {
                return Err(missing);
            };
            bits += offset;
            current = self.resolve(of_type).unwrap_or(current);
        }
        Ok(bits / 8)
    }

    /// The size of a structure in bytes.
    pub(super) fn size(&self, structure: &'static str) -> Result<u32, BtfError> {
        Ok(self.find(kind::STRUCT, structure)?.size_or_type)
    }

    /// How many arguments a tracepoint hands to a program. `name` is the kernel's type for those that it
    /// calls (`btf_trace_...`), whose first parameter is their own data.
    pub(super) fn tracepoint_arguments(&self, name: &'static str) -> Result<usize, BtfError> {
        let missing = || BtfError::NoType { name };
        let pointer = self.find(kind::TYPEDEF, name)?.size_or_type;
        let pointer = self.resolve(pointer).ok_or_else(missing)?;
        let function = self.resolve(pointer.size_or_type).ok_or_else(missing)?;
        if (pointer.kind(), function.kind()) != (kind::POINTER, kind::FUNCTION) {
            return Err(missing());
        }
        function.members().checked_sub(1).ok_or_else(missing)
    }

    /// Looks for a field, also inside anonymous structures and unions: its bit offset and type.
    fn field(&self, of: Type, name: &[u8]) -> Option<(u32, u32)> {
        for index in 0..of.members() {
            let at = of.data + index * 12;
            let member_name = word(&self.bytes, at)?;
            let member_type = word(&self.bytes, at + 4)?;
            let raw = word(&self.bytes, at + 8)?;
            let offset = if of.has_bitfields() {
                raw & 0x00ff_ffff
            } else {
                raw
            };
            if self.name(member_name) == name {
                return Some((offset, member_type));
            }
            if member_name == 0 {
                let inner = self.resolve(member_type)?;
                if matches!(inner.kind(), kind::STRUCT | kind::UNION)
                    && let Some((deeper, of_type)) = self.field(inner, name)
                {
                    return Some((offset + deeper, of_type));
                }
            }
        }
        None
    }

    /// Follows names and qualifiers to the type itself.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut current = *self.types.get(id as usize)?;
        for _ in 0..16 {
            match current.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::TYPE_TAG => {
                    current = *self.types.get(current.size_or_type as usize)?;
                }
                _ => return Some(current),
            }
        }
        None
    }

    /// The enumerators of an enumeration, by value.
    pub(super) fn enumerators(&self, name: &'static str) -> Result<HashMap<u32, String>, BtfError> {
        let found = self.find(kind::ENUM, name)?;
        let mut all = HashMap::new();
        for index in 0..found.members() {
            let at = found.data + index * 8;
            let (Some(text), Some(value)) = (word(&self.bytes, at), word(&self.bytes, at + 4))
            else {
                return Err(BtfError::Malformed);
            };
            all.entry(value)
                .or_insert_with(|| String::from_utf8_lossy(self.name(text)).into());
        }
        Ok(all)
    }
}

/// How many bytes follow the common part of a type.
fn data_length(of: Type) -> Option<usize> {
    let members = of.members();
    Some(match of.kind() {
        1 | 14 | 17 => 4,
        3 => 12,
        kind::STRUCT | kind::UNION | 15 | 19 => members * 12,
        kind::ENUM | kind::FUNCTION => members * 8,
        kind::POINTER | 7..=12 | 16 | kind::TYPE_TAG => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; struct { struct in { int b; } c; }; }; enum e { X = 3 };
    /// typedef void (*trace)(int, int, int);
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0in\0b\0c\0e\0X\0trace\0";
        let at = |text: &str| {
            let needle = [b"\0", text.as_bytes(), b"\0"].concat();
            let found = strings
                .windows(needle.len())
                .position(|w| w == needle)
                .unwrap();
            u32::try_from(found + 1).unwrap()
        };
        let info = |kind: u32, members: u32| (kind << 24) | members;
        let words = [
            vec![at("int"), info(1, 0), 4, 0x0100_0020],
            vec![at("in"), info(4, 1), 4, at("b"), 1, 0],
            vec![0, info(4, 1), 8, at("c"), 2, 32],
            vec![at("outer"), info(4, 2), 16, at("a"), 1, 0, 0, 3, 64],
            vec![at("e"), info(6, 1), 4, at("X"), 3],
            vec![at("trace"), info(8, 0), 7],
            vec![0, info(2, 0), 8],
            vec![0, info(13, 3), 0, 0, 1, 0, 1, 0, 1],
        ]
        .concat();
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let types = u32::try_from(words.len() * 4).unwrap();
        for field in [24, 0, types, types, u32::try_from(strings.len()).unwrap()] {
            bytes.extend(u32::to_ne_bytes(field));
        }
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_through_anonymous_and_named_structures() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("outer", "a").unwrap(), 0);
        assert_eq!(btf.offset("outer", "c.b").unwrap(), 12);
        assert!(matches!(
            btf.offset("outer", "d"),
            Err(BtfError::NoField { .. })
        ));
        assert!(matches!(
            btf.offset("other", "d"),
            Err(BtfError::NoType { .. })
        ));
    }

    #[test]
    fn enumerators_are_named() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.enumerators("e").unwrap()[&3], "X");
    }

    #[test]
    fn sizes_and_a_tracepoints_arguments_are_told() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.size("outer").unwrap(), 16);
        assert_eq!(btf.tracepoint_arguments("trace").unwrap(), 2);
        assert!(btf.tracepoint_arguments("none").is_err());
    }

    #[test]
    fn a_truncated_description_is_malformed() {
        let whole = sample();
        for length in 0..40 {
            assert!(Btf::parse(whole[..length].to_vec()).is_none());
        }
    }
}
