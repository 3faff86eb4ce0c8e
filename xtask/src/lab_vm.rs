//! `cargo xtask lab-vm`: runs a command, or whole test targets, under another kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::{build_ebpf, steps};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Debian's cloud kernel: 6.1 or 6.12
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// MiB of memory
    #[arg(long)]
    memory: Option<u32>,
    /// Seconds that all of it may take
    #[arg(long)]
    deadline: Option<u64>,
    /// A directory in which what the command writes stays (may be repeated) [default: the workspace]
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Build and run a test target of katamaran-tests, such as netns (may be repeated)
    #[arg(long, value_name = "TARGET")]
    test: Vec<String>,
    /// Build tests with optimisation
    #[arg(long)]
    release: bool,
    /// The program and its arguments; with --test, the arguments of the tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Builds what runs there, and runs it. The exit status is the command's.
///
/// # Errors
/// A build fails, or there is nothing to run.
pub(crate) fn run(workspace: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let command = if options.test.is_empty() {
        ensure!(!options.command.is_empty(), "no command and no --test");
        options.command.clone()
    } else {
        build_ebpf::ensure(workspace)?;
        one_after_the_other(&test_programs(workspace, options)?, &options.command)
    };
    let mut lab = vm(workspace, &options.kernel, options.release);
    for (flag, value) in [
        ("--memory", options.memory.map(|mib| mib.to_string())),
        (
            "--deadline",
            options.deadline.map(|seconds| seconds.to_string()),
        ),
    ] {
        if let Some(value) = value {
            lab.args([flag, &value]);
        }
    }
    for directory in &options.share {
        lab.arg("--share").arg(directory);
    }
    let status = lab
        .arg("--")
        .args(command)
        .status()
        .context("start cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// `katamaran-lab vm --kernel KERNEL`, to be continued.
fn vm(workspace: &Path, kernel: &str, release: bool) -> Command {
    let mut lab = steps::cargo(workspace);
    lab.args([
        "run",
        "--quiet",
        "-p",
        "katamaran-tests",
        "--bin",
        "katamaran-lab",
    ]);
    if release {
        lab.arg("--release");
    }
    lab.args(["--", "vm", "--kernel", kernel]);
    lab
}

/// Builds the targets; their programs, in the order that was asked for.
fn test_programs(workspace: &Path, options: &Options) -> anyhow::Result<Vec<OsString>> {
    let mut build = steps::cargo(workspace);
    build.args(["test", "--no-run", "--quiet", "-p", "katamaran-tests"]);
    build.arg("--message-format=json-render-diagnostics");
    if options.release {
        build.arg("--release");
    }
    for target in &options.test {
        build.args(["--test", target]);
    }
    let built = build
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(
        built.status.success(),
        "the build failed ({})",
        built.status
    );
    let messages: Vec<serde_json::Value> = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let program = |target: &String| {
        let of_target = messages
            .iter()
            .filter(|message| message["target"]["name"] == target.as_str())
            .find_map(|message| message["executable"].as_str());
        match of_target {
            Some(program) => Ok(program.into()),
            None => bail!("cargo named no program of test {target}"),
        }
    };
    options.test.iter().map(program).collect()
}

/// A command that runs all of them, one test at a time, and fails if one of them does.
fn one_after_the_other(programs: &[OsString], arguments: &[OsString]) -> Vec<OsString> {
    let calls: String =
        (1..=programs.len())
            .map(|number| format!("program{number}=$1; shift; "))
            .chain(["status=0; ".to_owned()])
            .chain((1..=programs.len()).map(|number| {
                format!("\"$program{number}\" --test-threads=1 \"$@\" || status=$?; ")
            }))
            .chain(["exit $status".to_owned()])
            .collect();
    let mut command: Vec<OsString> = vec!["sh".into(), "-c".into(), calls.into(), "sh".into()];
    command.extend(programs.iter().cloned());
    command.extend(arguments.iter().cloned());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_run_and_one_failure_is_the_status() {
        let run = |programs: [&str; 2]| {
            let command = one_after_the_other(&programs.map(OsString::from), &["a b".into()]);
            Command::new(&command[0])
                .args(&command[1..])
                .output()
                .unwrap()
        };
        let both = run(["echo", "echo"]);
        assert!(both.status.success());
        assert_eq!(both.stdout, b"--test-threads=1 a b\n--test-threads=1 a b\n");
        let second = run(["false", "echo"]);
        assert_eq!(second.status.code(), Some(1));
        assert_eq!(second.stdout, b"--test-threads=1 a b\n");
    }
}
