//! The kernel's functions by address, from `/proc/kallsyms`.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::ops::Range;

const PATH: &str = "/proc/kallsyms";

/// No function of the kernel is larger, in bytes.
const LARGEST: u64 = 0x1_0000;

/// The functions of the running kernel and of its modules, as of when they were read.
#[derive(Debug, Default)]
pub struct Symbols {
    text: String,
    /// Where each starts, and where in the text its name is; by address.
    functions: Vec<(u64, Range<usize>)>,
}

impl Symbols {
    /// Reads them. There are none where the kernel hides its addresses (`kernel.kptr_restrict`), or the file
    /// can't be read.
    #[must_use]
    pub fn of_kernel() -> Self {
        Self::parse(fs::read_to_string(PATH).unwrap_or_default())
    }

    fn parse(text: String) -> Self {
        let mut functions = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            functions.extend(function(line, start));
            start += line.len();
        }
        // Of several names for one address the last one listed counts.
        functions.sort_by_key(|(address, _)| *address);
        Self { text, functions }
    }

    /// Whether the kernel shows its addresses to us. Reads one line: all of them take a while.
    #[must_use]
    pub fn are_shown() -> bool {
        let mut first = String::new();
        let read = File::open(PATH).and_then(|file| BufReader::new(file).read_line(&mut first));
        read.is_ok() && first.bytes().take(16).any(|digit| digit != b'0')
    }

    /// The function that an address is in, and how far from its start: `name+0x1f`.
    #[must_use]
    pub fn name(&self, location: u64) -> Option<String> {
        let (address, name) = self.before(location)?;
        let name = self.text.get(name.clone())?;
        Some(format!("{name}+{:#x}", location - address))
    }

    /// Whether the function before an address is so far away that the address is in none of these: in a
    /// module, say, that was loaded since.
    #[must_use]
    pub fn is_foreign(&self, location: u64) -> bool {
        self.before(location)
            .is_none_or(|(address, _)| location - address > LARGEST)
    }

    fn before(&self, location: u64) -> Option<&(u64, Range<usize>)> {
        let behind = self
            .functions
            .partition_point(|(address, _)| *address <= location);
        self.functions.get(behind.checked_sub(1)?)
    }
}

/// `ffffffff81000000 T name [module]`, for text that has an address.
fn function(line: &str, line_start: usize) -> Option<(u64, Range<usize>)> {
    let (address, rest) = line.split_once(' ')?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let (kind, rest) = rest.split_once(' ')?;
    if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
        return None;
    }
    let name = rest.split_ascii_whitespace().next()?;
    let start = line_start + line.len() - rest.len();
    Some((address, start..start + name.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_named_by_the_symbol_before_it() {
        let symbols = Symbols::parse(
            "ffff1000 T first\nffff3000 T third\nffff2000 t second\t[module]\nffff2008 d data\n"
                .into(),
        );
        assert_eq!(symbols.name(0xffff_2010).unwrap(), "second+0x10");
        assert_eq!(symbols.name(0xffff_3000).unwrap(), "third+0x0");
        assert_eq!(symbols.name(0xff), None);
        assert!(!symbols.is_foreign(0xffff_2010));
        assert!(symbols.is_foreign(0x1_ffff_2010) && symbols.is_foreign(0xff));
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let symbols = Symbols::parse("0000000000000000 T first\n".into());
        assert_eq!(symbols.name(0xffff_2010), None);
    }
}
