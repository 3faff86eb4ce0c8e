//! `cargo xtask lab`, `soak`, `faults` and `bench`: builds what the lab needs, and runs it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};

use crate::{build_ebpf, steps};

/// Builds the programs and both binaries in release mode, then runs `katamaran-lab [verb] args`.
///
/// # Errors
/// A build fails, or the lab can't be started.
pub(crate) fn run(
    workspace: &Path,
    verb: Option<&str>,
    args: &[OsString],
) -> anyhow::Result<ExitCode> {
    build_ebpf::ensure(workspace)?;
    let status = steps::cargo(workspace)
        .args([
            "build",
            "--quiet",
            "--release",
            "-p",
            "katamaran",
            "-p",
            "katamaran-tests",
            "--bins",
        ])
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the build failed ({status})");
    let status = Command::new(workspace.join("target/release/katamaran-lab"))
        .args(verb)
        .args(args)
        .current_dir(workspace)
        .status()
        .context("start katamaran-lab")?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}
