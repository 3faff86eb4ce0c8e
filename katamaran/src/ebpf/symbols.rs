//! The kernel's functions by address, from `/proc/kallsyms`.

use std::fs;
use std::ops::Range;

const PATH: &str = "/proc/kallsyms";

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

    /// Whether the kernel hides its addresses from us.
    #[must_use]
    pub fn hidden(&self) -> bool {
        self.functions.is_empty()
    }

    /// The function that an address is in, and how far from its start: `name+0x1f`.
    #[must_use]
    pub fn name(&self, location: u64) -> Option<String> {
        let behind = self
            .functions
            .partition_point(|(address, _)| *address <= location);
        let (address, name) = self.functions.get(behind.checked_sub(1)?)?;
        let name = self.text.get(name.clone())?;
        Some(format!("{name}+{:#x}", location - address))
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
        assert!(!symbols.hidden());
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let symbols = Symbols::parse("0000000000000000 T first\n".into());
        assert_eq!(symbols.name(0xffff_2010), None);
        assert!(symbols.hidden());
    }
}
