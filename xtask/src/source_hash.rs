//! The hash of everything that the eBPF object is built from.
//!
//! Shared by path with `katamaran/build.rs`, so that the builder of the object and the crate that
//! embeds it agree on what "up to date" means. It answers "did somebody edit this?", nothing more:
//! FNV-1a is not a defence against forgery.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the object depends on, relative to the workspace root.
pub(crate) const INPUTS: [&str; 4] = [
    "katamaran-common/src",
    "katamaran-common/Cargo.toml",
    "katamaran-ebpf/src",
    "katamaran-ebpf/Cargo.toml",
];

/// Hashes the names and contents of all inputs, as 16 hexadecimal digits.
///
/// # Errors
///
/// When an input cannot be read.
pub(crate) fn source_hash(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(&workspace.join(input), &mut files)?;
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let name = file.strip_prefix(workspace).unwrap_or(&file);
        absorb(&mut hash, name.to_string_lossy().as_bytes());
        absorb(&mut hash, &fs::read(&file)?);
    }
    Ok(format!("{hash:016x}"))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
        files.push(path.to_owned());
    }
    Ok(())
}

fn absorb(hash: &mut u64, bytes: &[u8]) {
    let length = bytes.len() as u64;
    for byte in length.to_le_bytes().iter().chain(bytes) {
        *hash ^= u64::from(*byte);
        *hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
}
