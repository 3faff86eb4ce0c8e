//! Network namespaces: making, entering, configuring and removing them.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace with a name, as `ip netns` makes them.
///
/// Removal is not on drop but in [`crate::lab::cleanup`], which must also work when a signal ends
/// the program.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace.
    ///
    /// # Errors
    ///
    /// When `ip netns add` fails, for one because the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        run_command(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// The name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// The namespace's inode number, as the kernel's own tools show it.
    ///
    /// # Errors
    ///
    /// When the namespace is gone.
    pub fn inode(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let path = self.path();
        Ok(fs::metadata(&path)
            .with_context(|| format!("stat {}", path.display()))?
            .ino())
    }

    /// Runs `body` on a thread of its own inside the namespace and waits for it.
    ///
    /// # Errors
    ///
    /// When the namespace can't be entered.
    ///
    /// # Panics
    ///
    /// When `body` does.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| -> Result<T> {
                self.enter()?;
                Ok(body())
            });
            match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    ///
    /// When the namespace is gone or the caller may not enter it.
    pub fn enter(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))
    }

    /// Runs `ip` commands inside the namespace, one a line, all in one process: it takes long to start one on
    /// an emulated machine.
    ///
    /// # Errors
    ///
    /// With `ip`'s own message when one of them fails; those before it have been done.
    pub fn ip(&self, commands: &str) -> Result<()> {
        // A batch takes no options; the family of an address is plain to see.
        let lines: Vec<&str> = commands
            .lines()
            .map(|line| line.trim().trim_start_matches("-6 "))
            .collect();
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        let mut input = child.stdin.take().context("ip has a standard input")?;
        input
            .write_all(lines.join("\n").as_bytes())
            .context("tell ip what to do")?;
        drop(input);
        let output = child.wait_with_output().context("wait for ip")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("ip -n {}: {}\n{}", self.name, said.trim(), lines.join("\n"));
        }
        Ok(())
    }

    /// Runs a program inside the namespace to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// With the program's own message when it fails.
    pub fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        // The child inherits the namespace of the thread that starts it.
        self.run(|| run_command(Command::new(program).args(args)))?
    }

    /// Sets sysctls, by their path under `/proc/sys/net`.
    ///
    /// # Errors
    ///
    /// When one of them does not exist or takes no such value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| format!("write {value} to {path}"))?;
            }
            Ok(())
        })?
    }
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn run_command(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
