//! Runs named steps, shows each with its time, goes on after a failure, and sums up.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The outcome of a run.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    passed: u32,
    failed: Vec<String>,
}

impl Steps {
    /// Runs a command; its output goes where ours goes.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) {
        self.step(name, || match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(status.to_string()),
            Err(error) => Err(format!("{}: {error}", command.get_program().display())),
        });
    }

    /// Runs a step of our own.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<(), String>) {
        eprintln!("==> {name}");
        let began = Instant::now();
        let result = work();
        let seconds = began.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                self.passed += 1;
                eprintln!("    ok, {seconds:.1} s");
            }
            Err(error) => {
                eprintln!("    FAILED after {seconds:.1} s: {error}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Prints the last line and gives the exit status.
    pub(crate) fn finish(self) -> ExitCode {
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo(workspace: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace);
    command
}
