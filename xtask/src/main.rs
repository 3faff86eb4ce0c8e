//! Project tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line tool talks to its user"
)]

mod build_ebpf;
mod fuzz;
mod lab;
mod lab_vm;
mod source_hash;
mod steps;
mod test;
mod tidy;
mod toolchain;

use std::ffi::OsString;
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
    /// Runs the tests: everything (root, QEMU), or only what needs neither
    Test {
        /// `smoke`: the part that needs neither root nor QEMU nor an eBPF toolchain
        #[arg(value_parser = ["all", "smoke"], default_value = "all")]
        part: String,
    },
    /// Feeds whatever reads bytes of others with what libFuzzer comes up with, and prints a table
    Fuzz(fuzz::Options),
    /// Checks the project's own rules
    Tidy,
    /// Migrates again and again under load and prints a table (root; flags: see `soak --help`)
    #[command(disable_help_flag = true)]
    Soak {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Checks the commit protocol in every order of steps and faults, and prints how many states that were
    Model,
    /// Cancels one VM's migrations at random moments (root; see `cancel --help`)
    #[command(disable_help_flag = true)]
    Cancel {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Breaks something at every moment of a migration (root; see `faults --help`)
    #[command(disable_help_flag = true)]
    Faults {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Migrates one VM there and back, again and again (root; see `shuttle --help`)
    #[command(disable_help_flag = true)]
    Shuttle {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Migrates many VMs of one node at the same time (root; see `crowd --help`)
    #[command(disable_help_flag = true)]
    Crowd {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Migrates once on each kernel, through each tunnel, and prints a table (root; see `matrix --help`)
    #[command(disable_help_flag = true)]
    Matrix {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Takes away from katamaran what keeps packets from being lost, one thing at a time (root; see `ablations --help`)
    #[command(disable_help_flag = true)]
    Ablations {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measures and compares (root; see `bench --help`)
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Runs a command, or test targets, under another kernel over this machine's own root (root)
    LabVm(lab_vm::Options),
    /// Runs the lab by hand (root; see `lab --help`)
    #[command(disable_help_flag = true)]
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::as_rustc() {
        return code;
    }
    let workspace = workspace_root();
    let outcome = match Cli::parse().task {
        Task::BuildEbpf(options) => build_ebpf::run(&workspace, &options),
        Task::Test { part } if part == "smoke" => Ok(test::smoke(&workspace)),
        Task::Test { .. } => Ok(test::all(&workspace)),
        Task::Fuzz(options) => fuzz::run(&workspace, &options),
        Task::Tidy => tidy::check(&workspace)
            .map(|()| ExitCode::SUCCESS)
            .map_err(anyhow::Error::msg),
        Task::Soak { args } => lab::run(&workspace, Some("soak"), &args),
        Task::Model => test::model(&workspace),
        Task::Cancel { args } => lab::run(&workspace, Some("cancel"), &args),
        Task::Faults { args } => lab::run(&workspace, Some("faults"), &args),
        Task::Shuttle { args } => lab::run(&workspace, Some("shuttle"), &args),
        Task::Crowd { args } => lab::run(&workspace, Some("crowd"), &args),
        Task::Matrix { args } => lab::run(&workspace, Some("matrix"), &args),
        Task::Ablations { args } => lab::run(&workspace, Some("ablations"), &args),
        Task::Bench { args } => lab::run(&workspace, Some("bench"), &args),
        Task::LabVm(options) => lab_vm::run(&workspace, &options),
        Task::Lab { args } => lab::run(&workspace, None, &args),
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
