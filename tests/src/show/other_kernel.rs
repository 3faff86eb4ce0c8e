//! Any command under another kernel, with its output and exit status passed on.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::lab::{Kernel, KernelRun};

/// A command, and the kernel to run it under.
#[derive(Debug, Args)]
pub struct OtherKernel {
    /// Debian's cloud kernel: 6.1 or 6.12
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// MiB of memory
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Seconds that all of it may take
    #[arg(long, default_value_t = 600)]
    deadline: u64,
    /// A directory in which what the command writes stays (may be repeated) [default: the current one]
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl OtherKernel {
    /// Never returns but with an error: the exit status is the command's.
    ///
    /// # Errors
    ///
    /// When the kernel can't be booted, or the command is not done in time.
    pub fn run(self) -> Result<()> {
        let directory = std::env::current_dir().context("find the current directory")?;
        let shared = if self.share.is_empty() {
            vec![directory.clone()]
        } else {
            self.share
        };
        let run = KernelRun {
            directory,
            shared,
            memory_mib: self.memory,
            deadline: Duration::from_secs(self.deadline),
            ..KernelRun::new(self.kernel, self.command)
        };
        let status = run.run(&mut std::io::stdout(), &mut std::io::stderr())?;
        std::process::exit(status)
    }
}
