//! The lab's other kernel: Debian's, with modules that the machine's own kernel does not have, booted in QEMU
//! for one program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::image::{cache_dir, kernel_and_modules, read_module};
use super::process::Process;

/// What runs under that kernel.
#[derive(Debug, Clone)]
pub struct KernelRun<'a> {
    /// Modules, in the order in which they can be loaded.
    pub modules: &'a [&'a str],
    /// What busybox's shell does first, with /proc, /sys and /dev mounted.
    pub set_up: &'a str,
    /// A program of this machine; it goes along with the libraries that it is linked with.
    pub program: &'a Path,
    /// The program's place in a shell command: `PROGRAM` stands for it.
    pub command: &'a str,
    /// How long all of it may take.
    pub deadline: Duration,
}

/// The last line of the console, before the exit status.
const ENDED: &str = "katamaran-lab: ended with ";

impl KernelRun<'_> {
    /// Boots, runs the program and returns its exit status and the console's output.
    ///
    /// # Errors
    ///
    /// When the kernel is not there, or the program has not ended in time.
    pub fn run(&self) -> Result<(i32, String)> {
        let (kernel, modules) = kernel_and_modules()?;
        let scratch = tempfile::tempdir_in(cache_dir()).context("make a scratch directory")?;
        let initramfs = scratch.path().join("initramfs");
        let archive = self.archive(&modules, scratch.path())?;
        fs::write(&initramfs, archive).context("write the initramfs")?;
        let console = scratch.path().join("console");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "tcg", "-cpu", "max,-cx16"])
            .args(["-smp", "2", "-m", "768M", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot"])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-serial", &format!("file:{}", console.display())])
            .stdin(Stdio::null());
        let mut qemu = Process::spawn("lab kernel", command, None)?;
        let ended = qemu.wait_until(Instant::now() + self.deadline);
        let output = fs::read(&console).unwrap_or_default();
        let output = String::from_utf8_lossy(&output).into_owned();
        ended.with_context(|| output.clone())?;
        let status = output
            .lines()
            .find_map(|line| line.trim().strip_prefix(ENDED)?.parse().ok());
        match status {
            Some(status) => Ok((status, output)),
            None => bail!("the program did not end:\n{output}"),
        }
    }

    fn archive(&self, modules: &Path, scratch: &Path) -> Result<Vec<u8>> {
        let program = scratch.join("program");
        run(Command::new("strip")
            .arg("-o")
            .arg(&program)
            .arg(self.program))?;
        let mut files = vec![("bin/program".to_owned(), program)];
        files.push(("bin/busybox".to_owned(), "/bin/busybox".into()));
        for library in libraries(self.program)? {
            let name = library.display().to_string();
            files.push((name.trim_start_matches('/').to_owned(), library));
        }
        let mut archive = Archive::new();
        for directory in directories(files.iter().map(|(name, _)| name.as_str())) {
            archive.directory(&directory);
        }
        archive.first_devices();
        for (name, path) in &files {
            let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            archive.file(name, 0o755, &content);
        }
        for name in self.modules {
            let content = read_module(modules, name)?;
            archive.file(&format!("modules/{name}.ko"), 0o644, &content);
        }
        archive.file("init", 0o755, self.init().as_bytes());
        Ok(archive.finish())
    }

    fn init(&self) -> String {
        let modules: String = self
            .modules
            .iter()
            .map(|name| format!("insmod /modules/{name}.ko || echo 'no module {name}'\n"))
            .collect();
        format!(
            "#!/bin/busybox sh\n\
             /bin/busybox --install -s /bin\n\
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
             {modules}\
             {}\n\
             {}\n\
             echo \"{ENDED}$?\"\n\
             poweroff -f\n",
            self.set_up,
            self.command.replace("PROGRAM", "/bin/program")
        )
    }
}

/// All directories that these files are in, outer ones first, and those that init mounts something on.
fn directories<'a>(files: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut directories: BTreeSet<String> = ["dev", "proc", "sys", "tmp", "modules"]
        .map(str::to_owned)
        .into();
    for file in files {
        let parents = Path::new(file).ancestors().skip(1);
        directories.extend(
            parents
                .map(|parent| parent.display().to_string())
                .filter(|parent| !parent.is_empty()),
        );
    }
    directories
}

/// The shared libraries of a program, its loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = run(Command::new("ldd").arg(program))?;
    Ok(listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let all: Vec<_> = directories(["lib/x86/libc.so", "bin/a"].into_iter())
            .into_iter()
            .collect();
        let at = |name: &str| all.iter().position(|d| d == name).unwrap();
        assert!(at("lib") < at("lib/x86") && all.contains(&"bin".to_owned()));
    }
}
