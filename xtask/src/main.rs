//! Project tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line tool talks to its user"
)]

mod build_ebpf;
mod source_hash;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Tasks of the katamaran workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the eBPF object into target/bpf/, where katamaran's build script picks it up
    BuildEbpf(build_ebpf::Options),
}

fn main() -> ExitCode {
    let workspace = workspace_root();
    let outcome = match Cli::parse().task {
        Task::BuildEbpf(options) => build_ebpf::run(&workspace, &options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf)
}
