//! The guest's kernel and initramfs: built once, kept in the cache, found by content.
//!
//! The initramfs is busybox, the virtio modules that Debian's cloud kernel does not have built in,
//! and `katamaran-guest` as init, compiled here as one static program.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::modules::Modules;
use super::netns::run_command;

/// What a guest needs of its kernel that is not built in.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_blk"];

/// To be raised when [`build`] puts other things into the initramfs.
const FORMAT: u32 = 3;

/// What `-kernel` and `-initrd` take.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Where `scripts/setup.sh` puts things: `$KATAMARAN_LAB_CACHE` or /var/cache/katamaran-lab.
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os("KATAMARAN_LAB_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/katamaran-lab"), PathBuf::from)
}

impl GuestImage {
    /// For what boots nothing.
    pub(super) fn none() -> Self {
        Self {
            kernel: "none".into(),
            initramfs: "none".into(),
        }
    }

    /// Finds the image in the cache or builds it.
    ///
    /// # Errors
    ///
    /// When `scripts/setup.sh` has not been run, or the guest's program does not compile.
    pub fn prepare() -> Result<Self> {
        let kernel = Kernel::V6_1.image()?;
        let guest = source_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/src"))?;
        let mut hasher = DefaultHasher::new();
        (kernel.as_os_str(), MODULES, FORMAT).hash(&mut hasher);
        for file in &guest {
            fs::read(file)
                .with_context(|| format!("read {}", file.display()))?
                .hash(&mut hasher);
        }
        let initramfs = cache_dir().join(format!("initramfs-{:016x}", hasher.finish()));
        if !initramfs.exists() {
            build(&initramfs)?;
        }
        Ok(Self { kernel, initramfs })
    }
}

fn build(initramfs: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(cache_dir()).context("make a scratch directory")?;
    let init = compile_init(scratch.path())?;
    let mut archive = Archive::new();
    for dir in ["bin", "dev", "proc", "sys", "modules"] {
        archive.directory(dir);
    }
    archive.first_devices();
    archive.file(
        "init",
        0o755,
        &fs::read(init).context("read the guest's program")?,
    );
    let busybox = fs::read("/bin/busybox").context("read /bin/busybox (busybox-static)")?;
    archive.file("bin/busybox", 0o755, &busybox);
    let modules = Modules::open(&Kernel::V6_1.modules()?)?.with_dependencies(&MODULES)?;
    let mut order = String::new();
    for (name, content) in &modules {
        archive.file(&format!("modules/{name}.ko"), 0o644, content);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    // Complete or not there at all: another lab may be doing the same.
    let whole = scratch.path().join("initramfs");
    fs::write(&whole, archive.finish()).context("write the initramfs")?;
    fs::rename(&whole, initramfs).context("put the initramfs into the cache")
}

/// Compiles `katamaran-guest` by itself: it has no dependencies, and a `cargo` run with other flags
/// would throw away what the workspace has built.
fn compile_init(scratch: &Path) -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = scratch.join("katamaran-guest");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/src/main.rs");
    run_command(
        Command::new(rustc)
            .args(["--edition", "2024", "--crate-name", "katamaran_guest"])
            .args([
                "-C",
                "opt-level=2",
                "-C",
                "strip=symbols",
                "-C",
                "panic=abort",
            ])
            .args([
                "-C",
                "target-feature=+crt-static",
                "--target",
                "x86_64-unknown-linux-gnu",
            ])
            .arg(source)
            .arg("-o")
            .arg(&output),
    )
    .context("compile the guest's program")?;
    Ok(output)
}

fn source_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        files.push(
            entry
                .with_context(|| format!("read {}", dir.display()))?
                .path(),
        );
    }
    files.sort();
    Ok(files)
}
