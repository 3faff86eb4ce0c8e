//! Finds a Rust toolchain that can build for the BPF target.
//!
//! Tried in order, each really probed: what the user names in the environment, a rustup nightly with
//! `rust-src`, a distribution's stable rustc that ships the library sources. What failed, and why,
//! is kept for the message when nothing works.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of the programs: little endian only, as all nodes we know of are.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A toolchain that can build `core` for [`TARGET`].
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// How it was found, for the log.
    pub origin: String,
    cargo: OsString,
    cargo_args: Vec<OsString>,
    rustc: Option<OsString>,
    bootstrap: bool,
    /// First line of `rustc -vV`.
    pub version: String,
    /// The LLVM that rustc brings; bpf-linker must not be older.
    pub llvm_major: Option<u32>,
}

/// Nothing on this machine can build for BPF.
#[derive(Debug)]
pub(crate) struct Missing {
    /// What was looked at, with the reason it did not do.
    pub tried: Vec<String>,
}

impl Toolchain {
    /// The first toolchain that works.
    pub(crate) fn find() -> Result<Self, Missing> {
        let mut tried = Vec::new();
        for probe in [from_environment, from_rustup, from_distribution] {
            match probe(&mut tried) {
                Some(found) => return Ok(found),
                None => continue,
            }
        }
        Err(Missing { tried })
    }

    /// A cargo command of this toolchain, free of wrappers that belong to the host build.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(&self.cargo_args);
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "RUSTUP_TOOLCHAIN",
            "CARGO",
        ] {
            command.env_remove(name);
        }
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
        if self.bootstrap {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

fn from_environment(tried: &mut Vec<String>) -> Option<Toolchain> {
    let rustc = env::var_os("KATAMARAN_BPF_RUSTC");
    let cargo = env::var_os("KATAMARAN_BPF_CARGO");
    if rustc.is_none() && cargo.is_none() {
        tried.push("KATAMARAN_BPF_RUSTC, KATAMARAN_BPF_CARGO: not set".to_owned());
        return None;
    }
    let rustc = rustc.unwrap_or_else(|| "rustc".into());
    let label = format!("KATAMARAN_BPF_RUSTC={}", rustc.to_string_lossy());
    let (version, llvm_major) = probe(&rustc, &[], &label, tried)?;
    Some(Toolchain {
        origin: label,
        cargo: cargo.unwrap_or_else(|| "cargo".into()),
        cargo_args: Vec::new(),
        bootstrap: !version.contains("nightly"),
        rustc: Some(rustc),
        version,
        llvm_major,
    })
}

fn from_rustup(tried: &mut Vec<String>) -> Option<Toolchain> {
    let label = "rustup nightly".to_owned();
    // `rustup run` never installs a missing toolchain behind the user's back; `cargo +nightly` may.
    let arguments = ["run", "nightly", "rustc"].map(OsString::from);
    let (version, llvm_major) = probe("rustup".as_ref(), &arguments, &label, tried)?;
    Some(Toolchain {
        origin: label,
        cargo: "rustup".into(),
        cargo_args: ["run", "nightly", "cargo"].map(OsString::from).to_vec(),
        rustc: None,
        bootstrap: false,
        version,
        llvm_major,
    })
}

fn from_distribution(tried: &mut Vec<String>) -> Option<Toolchain> {
    for directory in ["/usr/bin", "/usr/local/bin"] {
        let rustc = Path::new(directory).join("rustc");
        let cargo = Path::new(directory).join("cargo");
        let label = rustc.display().to_string();
        if !rustc.exists() || !cargo.exists() {
            tried.push(format!("{label}: no rustc and cargo there"));
            continue;
        }
        let Some((version, llvm_major)) = probe(rustc.as_os_str(), &[], &label, tried) else {
            continue;
        };
        return Some(Toolchain {
            origin: label,
            cargo: cargo.into(),
            cargo_args: Vec::new(),
            rustc: Some(rustc.into()),
            bootstrap: true,
            version,
            llvm_major,
        });
    }
    None
}

/// Asks a rustc for its version and looks for the library sources in its sysroot.
fn probe(
    program: &std::ffi::OsStr,
    arguments: &[OsString],
    label: &str,
    tried: &mut Vec<String>,
) -> Option<(String, Option<u32>)> {
    let ask = |extra: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .args(extra)
            .env_remove("RUSTUP_TOOLCHAIN")
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(version) = ask(&["-vV"]) else {
        tried.push(format!("{label}: not there, or it does not run"));
        return None;
    };
    let sysroot = ask(&["--print", "sysroot"]).map(PathBuf::from)?;
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.exists() {
        tried.push(format!("{label}: no library sources at {}", core.display()));
        return None;
    }
    let llvm_major = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|text| text.split('.').next()?.parse().ok());
    Some((
        version.lines().next().unwrap_or_default().to_owned(),
        llvm_major,
    ))
}
