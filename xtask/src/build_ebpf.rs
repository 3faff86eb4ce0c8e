//! `cargo xtask build-ebpf`: the only builder of the eBPF object.
//!
//! Writes `target/bpf/katamaran-ebpf.o` and `target/bpf/build.json` (what it was built from and with).
//! cargo's own files go to `target/bpf-cargo/`, so that watching `target/bpf/` stays cheap.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::source_hash::source_hash;
use crate::toolchain::{Missing, TARGET, Toolchain};

/// Exit status when this machine lacks what the build needs.
const EXIT_NOTHING_TO_BUILD_WITH: u8 = 3;

/// Flags that belong to the object: BTF for map and program types, one unit for a small stack.
const RUSTFLAGS: &str = "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3 -C linker=bpf-linker \
                         --cfg bpf_target_arch=\"x86_64\"";

/// Every program that the object must hold, and the section each lives in.
const PROGRAMS: [(&str, &str); 7] = [
    ("ktm_source", "classifier"),
    ("ktm_deliver", "classifier"),
    ("ktm_tap", "classifier"),
    ("ktm_xmit", "raw_tp/net_dev_start_xmit"),
    ("ktm_drop", "raw_tp/kfree_skb"),
    ("ktm_trace", "raw_tp/kfree_skb"),
    ("ktm_trace_sk", "raw_tp/kfree_skb"),
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Builds even when the sources have not changed
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(workspace: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let directory = workspace.join("target/bpf");
    let object = directory.join("katamaran-ebpf.o");
    let record = directory.join("build.json");
    let hash = source_hash(workspace).context("hash the eBPF sources")?;
    if !options.force && object.exists() && recorded_hash(&record).as_deref() == Some(&hash) {
        println!("{} is up to date ({hash})", object.display());
        return Ok(ExitCode::SUCCESS);
    }

    let toolchain = match Toolchain::find() {
        Ok(found) => found,
        Err(missing) => return Ok(explain_toolchain(&missing)),
    };
    println!("building with {} ({})", toolchain.origin, toolchain.version);
    let linker = match linker_version() {
        Ok(version) => version,
        Err(reason) => return Ok(explain_linker(&reason, &toolchain)),
    };

    let built = compile(workspace, &toolchain)?;
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    verify(&bytes).with_context(|| format!("{} is not what it should be", built.display()))?;

    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    // The record goes first away and comes last back: an object without one counts as not built.
    if record.exists() {
        fs::remove_file(&record).context("remove the old build record")?;
    }
    fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
    let facts = json!({
        "source_hash": hash,
        "rustc": toolchain.version,
        "toolchain": toolchain.origin,
        "linker": linker,
        "flags": RUSTFLAGS,
        "bytes": bytes.len(),
    });
    fs::write(&record, format!("{facts:#}\n")).context("write the build record")?;
    println!(
        "{}: {} bytes, sources {hash}",
        object.display(),
        bytes.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds unless what is there is up to date.
///
/// # Errors
/// The build fails, or this machine lacks what it needs.
pub(crate) fn ensure(workspace: &Path) -> anyhow::Result<()> {
    let code = run(workspace, &Options { force: false })?;
    ensure!(
        code == ExitCode::SUCCESS,
        "the eBPF programs can't be built here"
    );
    Ok(())
}

/// clippy for the programs: a run of its own, because features would be unified otherwise. They
/// compile for the host as well, and the host's clippy is what everybody has.
pub(crate) fn clippy(workspace: &Path) -> Command {
    let mut command = crate::steps::cargo(workspace);
    command.args(["clippy", "-p", "katamaran-ebpf", "--", "-D", "warnings"]);
    command
}

fn compile(workspace: &Path, toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    let target_dir = workspace.join("target/bpf-cargo");
    let status = toolchain
        .cargo()
        .current_dir(workspace)
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            "katamaran-ebpf",
        ])
        .args(["-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_CFG_BPF_TARGET_ARCH", "x86_64")
        .status()
        .context("start cargo for the eBPF build")?;
    ensure!(status.success(), "the eBPF build failed ({status})");
    Ok(target_dir.join(TARGET).join("release/katamaran-ebpf"))
}

fn recorded_hash(record: &Path) -> Option<String> {
    let value: Value = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    Some(value.get("source_hash")?.as_str()?.to_owned())
}

fn linker_version() -> Result<String, String> {
    match Command::new("bpf-linker").arg("--version").output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Err(format!("bpf-linker --version: {}", output.status)),
        Err(error) => Err(format!("bpf-linker: {error}")),
    }
}

/// Checks that the file is a relocatable BPF ELF object that names all programs, sections and BTF.
fn verify(bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "not a little endian 64-bit ELF file"
    );
    let machine = bytes
        .get(18..20)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_le_bytes);
    ensure!(
        machine == Some(247),
        "built for ELF machine {machine:?}, not for BPF (247)"
    );
    let names = PROGRAMS
        .iter()
        .flat_map(|(program, section)| [*program, *section]);
    for name in names.chain(["maps", ".BTF"]) {
        let mut needle = name.as_bytes().to_vec();
        needle.push(0);
        if !bytes.windows(needle.len()).any(|window| window == needle) {
            bail!("the object does not name {name}");
        }
    }
    Ok(())
}

fn explain_toolchain(missing: &Missing) -> ExitCode {
    eprintln!("No toolchain here can build for {TARGET}. Tried:");
    for line in &missing.tried {
        eprintln!("  - {line}");
    }
    eprintln!(
        "Install one of:\n  \
         rustup toolchain install nightly --component rust-src\n  \
         apt-get install rustc-web rust-web-src cargo-web    (Debian; sources beside a stable rustc)\n\
         or name one: KATAMARAN_BPF_RUSTC=/path/to/rustc KATAMARAN_BPF_CARGO=/path/to/cargo"
    );
    ExitCode::from(EXIT_NOTHING_TO_BUILD_WITH)
}

fn explain_linker(reason: &str, toolchain: &Toolchain) -> ExitCode {
    let llvm = toolchain.llvm_major.unwrap_or(22);
    eprintln!(
        "No usable bpf-linker ({reason}). Install it with:\n  \
         cargo install bpf-linker\n\
         or, against the distribution's LLVM (rustc brings LLVM {llvm}; an older one will not do):\n  \
         apt-get install llvm-{llvm}-dev libpolly-{llvm}-dev libzstd-dev zlib1g-dev\n  \
         LLVM_PREFIX=/usr/lib/llvm-{llvm} RUSTFLAGS=\"-L /usr/lib/llvm-{llvm}/lib\" \
         cargo install bpf-linker --no-default-features --features llvm-{llvm}"
    );
    ExitCode::from(EXIT_NOTHING_TO_BUILD_WITH)
}
