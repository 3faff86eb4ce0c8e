//! Embeds the eBPF object that `cargo xtask build-ebpf` has built, or an empty stub.
//!
//! Runs no cargo and needs no eBPF toolchain: without an object everything compiles, and loading the
//! stub is a typed error that names the command. The hash of the sources as they are now is embedded
//! beside the one the object was built from, so that a stale object is refused at load.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[path = "../xtask/src/source_hash.rs"]
mod source_hash;

/// Names the object to embed instead of `target/bpf/katamaran-ebpf.o`.
const OVERRIDE: &str = "KATAMARAN_BPF_OBJECT";

fn main() -> io::Result<()> {
    let crate_root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = crate_root.parent().unwrap_or(&crate_root).to_owned();
    let out = PathBuf::from(variable("OUT_DIR")?);

    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    println!(
        "cargo::rerun-if-changed={}",
        workspace.join("xtask/src/source_hash.rs").display()
    );
    for input in source_hash::INPUTS {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }

    let object = match env::var_os(OVERRIDE) {
        Some(path) => PathBuf::from(path),
        None => {
            let directory = workspace.join("target/bpf");
            // The directory is watched, not the object: cargo takes a missing file for a changed one
            // and would build everything again each time.
            fs::create_dir_all(&directory)?;
            println!("cargo::rerun-if-changed={}", directory.display());
            directory.join("katamaran-ebpf.o")
        }
    };
    let target = out.join("katamaran-ebpf.o");
    match fs::read(&object) {
        Ok(bytes) => {
            println!("cargo::rerun-if-changed={}", object.display());
            fs::write(&target, bytes)?;
        }
        Err(error) => {
            println!(
                "cargo::warning=no eBPF object at {} ({error}): the data plane is a stub until \
                 `cargo xtask build-ebpf` has run",
                object.display()
            );
            fs::write(&target, [])?;
        }
    }
    println!(
        "cargo::rustc-env=KATAMARAN_SOURCE_HASH={}",
        source_hash::source_hash(&workspace)?
    );
    println!(
        "cargo::rustc-env=KATAMARAN_OBJECT_HASH={}",
        built_from(&object).unwrap_or_default()
    );
    Ok(())
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

/// The source hash in the build record beside the object; nothing when there is no record.
fn built_from(object: &Path) -> Option<String> {
    let record = fs::read_to_string(object.with_file_name("build.json")).ok()?;
    let (_, rest) = record.split_once("\"source_hash\"")?;
    rest.split('"').nth(1).map(str::to_owned)
}
