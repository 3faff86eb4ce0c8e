//! Runs a command under another kernel, over this machine's own root file system.
//!
//! QEMU boots the kernel; its root is this machine's, handed over by virtiofsd, under an overlay in memory. So every
//! program is there, at its path, with its libraries, and nothing that is written there changes this
//! machine, except in the directories that are shared. The kernel's modules are in /lib/modules and are loaded on demand.
//! Mounted as on any node: /proc, /sys, /dev, /run, bpffs, tracefs, cgroups.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cleanup::Belongings;
use super::cpio::Archive;
use super::kernel::Kernel;
use super::modules::Modules;
use super::process::Process;
use super::qemu::QemuVersion;
use super::topology::fresh_id;

/// What it takes to mount this machine's root.
const EARLY_MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];
/// One with few features: what a kernel does to use more of them makes each process twice as slow to start under TCG.
const CPU: &str = "Nehalem";
/// How often the command's output is passed on.
const POLL: Duration = Duration::from_millis(10);
/// How long virtiofsd may take to start.
const VIRTIOFSD_DEADLINE: Duration = Duration::from_secs(10);

/// A command under another kernel.
#[derive(Debug, Clone)]
pub struct KernelRun<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// What a shell does first.
    pub set_up: &'a str,
    /// The program and its arguments. It has this process's environment.
    pub command: Vec<OsString>,
    /// More variables for it.
    pub environment: &'a [(&'a str, &'a str)],
    /// Where it starts.
    pub directory: PathBuf,
    /// Directories in which what it writes stays.
    pub shared: Vec<PathBuf>,
    /// MiB of memory, for what is written elsewhere, too.
    pub memory_mib: u32,
    /// How long all of it may take.
    pub deadline: Duration,
}

impl KernelRun<'_> {
    /// A run with nothing special about it, from the root directory.
    #[must_use]
    pub fn new<S: AsRef<OsStr>>(kernel: Kernel, command: impl IntoIterator<Item = S>) -> Self {
        Self {
            kernel,
            set_up: "",
            command: command.into_iter().map(|w| w.as_ref().to_owned()).collect(),
            environment: &[],
            directory: "/".into(),
            shared: Vec::new(),
            memory_mib: 1024,
            deadline: Duration::from_secs(300),
        }
    }

    /// Boots, runs the command, and passes on what it writes as it comes. Returns its exit status, as a shell has it.
    ///
    /// # Errors
    ///
    /// When something is missing on this machine, the kernel dies, or the command has not ended in time.
    pub fn run(&self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<i32> {
        let deadline = Instant::now() + self.deadline;
        let belongings = Belongings::register(&fresh_id()?)?;
        let result = self.run_in(belongings.dir(), deadline, stdout, stderr);
        belongings.remove();
        belongings.forget();
        result
    }

    /// Runs the command and returns its exit status and all that it wrote.
    ///
    /// # Errors
    ///
    /// Like [`KernelRun::run`].
    pub fn output(&self) -> Result<(i32, String)> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.run(&mut stdout, &mut stderr)?;
        stdout.append(&mut stderr);
        Ok((status, String::from_utf8_lossy(&stdout).into_owned()))
    }

    fn run_in(
        &self,
        scratch: &Path,
        deadline: Instant,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<i32> {
        let file = |name: &str| scratch.join(name);
        let write = |name: &str, content: &[u8]| {
            fs::write(file(name), content)
                .with_context(|| format!("write {}", file(name).display()))
        };
        let init = format!(
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
             cd {}\n\
             ip link set lo up\n\
             sh command >>stdout 2>>stderr\n\
             echo $? >status\n\
             exec poweroff -f\n",
            scratch.display()
        );
        write("init", init.as_bytes())?;
        write("command", &self.script())?;
        write("initramfs", &self.initramfs(scratch)?)?;
        write("stdout", &[])?;
        write("stderr", &[])?;
        let open = |name: &str| {
            File::open(file(name)).with_context(|| format!("open {}", file(name).display()))
        };
        let (mut said, mut complained) = (open("stdout")?, open("stderr")?);
        let _virtiofsd = start_virtiofsd(&file("virtiofs"))?;
        let mut qemu = self.start_qemu(scratch)?;
        loop {
            let ended = qemu.try_wait()?.is_some();
            pass_on(&mut said, stdout)?;
            pass_on(&mut complained, stderr)?;
            if ended {
                break;
            }
            if Instant::now() >= deadline {
                let limit = self.deadline.as_secs();
                bail!(
                    "not done under {} after {limit} s; {}",
                    self.kernel,
                    console(scratch)
                );
            }
            thread::sleep(POLL);
        }
        let status = fs::read_to_string(file("status")).unwrap_or_default();
        let Ok(status) = status.trim().parse() else {
            bail!(
                "{} ended before the command did; {}",
                self.kernel,
                console(scratch)
            );
        };
        Ok(status)
    }

    fn start_qemu(&self, scratch: &Path) -> Result<Process> {
        let memory = format!("{}M", self.memory_mib);
        let file = |name: &str| scratch.join(name).display().to_string();
        let mut command = QemuVersion::V10_0.command()?;
        command
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                CPU,
                "-smp",
                "2",
            ])
            .args(["-m", &memory, "-numa", "node,memdev=ram", "-object"])
            .arg(format!(
                "memory-backend-memfd,id=ram,share=on,size={memory}"
            ))
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-chardev",
                &format!("socket,id=fs,path={}", file("virtiofs")),
            ])
            .args(["-device", "vhost-user-fs-pci,chardev=fs,tag=host"])
            .args(["-serial", &format!("file:{}", file("console"))])
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on",
            ])
            .arg("-kernel")
            .arg(self.kernel.image()?)
            .args(["-initrd", &file("initramfs")])
            .stdin(Stdio::null());
        Process::spawn("lab kernel", command, None)
    }

    /// Mounts this machine's root and what belongs on it, and goes on there. A process is slow to start under TCG,
    /// so all of it is one busybox's work.
    fn initramfs(&self, scratch: &Path) -> Result<Vec<u8>> {
        let modules = self.kernel.modules()?;
        let early = Modules::open(&modules)?.with_dependencies(&EARLY_MODULES)?;
        let busybox = fs::read("/bin/busybox").context("read /bin/busybox (busybox-static)")?;
        let mut archive = Archive::new();
        for directory in [
            "bin", "dev", "host", "memory", "modules", "proc", "root", "sys",
        ] {
            archive.directory(directory);
        }
        archive.first_devices();
        archive.file("bin/busybox", 0o755, &busybox);
        let mut init = b"#!/bin/busybox sh\n\
              set -e\n\
              /bin/busybox --install -s /bin\n\
              mount -t proc proc /proc\n\
              mount -t sysfs sys /sys\n\
              mount -t devtmpfs dev /dev\n"
            .to_vec();
        for (name, content) in &early {
            archive.file(&format!("modules/{name}.ko"), 0o644, content);
            init.extend(format!("insmod /modules/{name}.ko\n").into_bytes());
        }
        init.extend(device_nodes(&modules)?.into_bytes());
        init.extend(
            b"mkdir /dev/pts /dev/shm\n\
              mount -t devpts devpts /dev/pts\n\
              mount -t tmpfs shm /dev/shm\n\
              mount -t bpf bpf /sys/fs/bpf\n\
              mount -t tracefs tracefs /sys/kernel/tracing\n\
              mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
              mount -t virtiofs host /host\n\
              mount -t tmpfs memory /memory\n\
              mkdir /memory/upper /memory/work\n\
              mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root\n\
              for place in proc sys dev; do mount --move /$place /root/$place; done\n\
              mount -t tmpfs run /root/run\n",
        );
        let mut bind = |from: &Path, to: &Path| {
            let from = [b"/host", &*quoted(from.as_os_str())].concat();
            let to = [b"/root", &*quoted(to.as_os_str())].concat();
            init.extend(
                [
                    b"mkdir -p ",
                    &*to,
                    b"\nmount --bind ",
                    &*from,
                    b" ",
                    &*to,
                    b"\n",
                ]
                .concat(),
            );
        };
        // Where /lib is a link, it is one to the same name below.
        bind(
            modules.parent().unwrap_or(&modules),
            &fs::canonicalize("/lib")
                .context("find /lib")?
                .join("modules"),
        );
        bind(scratch, scratch);
        for shared in &self.shared {
            let shared =
                fs::canonicalize(shared).with_context(|| format!("find {}", shared.display()))?;
            bind(&shared, &shared);
        }
        let ending = format!(
            "umount /host\n\
             exec switch_root /root /bin/busybox sh {}/init\n",
            scratch.display()
        );
        init.extend(ending.into_bytes());
        archive.file("init", 0o755, &init);
        Ok(archive.finish())
    }

    /// Set-up and command, for a shell.
    fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        if !self.set_up.is_empty() {
            // What fails there shows in the command, with the set-up's own words before it.
            script.extend([b"{\n", self.set_up.as_bytes(), b"\n} >&2\n"].concat());
        }
        let mut export = |name: &OsStr, value: &OsStr| {
            // Others can't be named in a shell.
            if name
                .as_bytes()
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'_')
            {
                script.extend([b"export ", name.as_bytes(), b"=", &*quoted(value), b"\n"].concat());
            }
        };
        for (name, value) in std::env::vars_os() {
            export(&name, &value);
        }
        for (name, value) in self.environment {
            export(name.as_ref(), value.as_ref());
        }
        let directory = quoted(self.directory.as_os_str());
        script.extend([b"cd ", &*directory, b" || exit 126\nexec"].concat());
        for word in &self.command {
            script.extend([b" ", &*quoted(word)].concat());
        }
        script.push(b'\n');
        script
    }
}

/// Makes the device files that load their module when they are opened, such as /dev/net/tun.
fn device_nodes(modules: &Path) -> Result<String> {
    let index = modules.join("modules.devname");
    let index = fs::read_to_string(&index).with_context(|| format!("read {}", index.display()))?;
    let mut commands = String::new();
    for line in index.lines() {
        // `tun net/tun c10:200`; comments have no such third word.
        let mut words = line.split(' ').skip(1);
        let (name, device) = (words.next(), words.next());
        let Some((name, (major, minor))) = name.zip(device.and_then(|d| d.split_once(':'))) else {
            continue;
        };
        let (kind, major) = major.split_at(1);
        commands.push_str(&format!(
            "mkdir -p $(dirname /dev/{name})\n[ -e /dev/{name} ] || mknod /dev/{name} {kind} {major} {minor}\n"
        ));
    }
    Ok(commands)
}

/// The end of what the kernel said.
fn console(scratch: &Path) -> String {
    let said = fs::read(scratch.join("console")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(40)..].join("\n");
    format!("the end of its console:\n{end}")
}

/// A word of a shell command that stands for exactly this.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut text = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend(b"'\\''"),
            other => text.push(*other),
        }
    }
    text.push(b'\'');
    text
}

fn pass_on(from: &mut File, to: &mut dyn Write) -> Result<()> {
    let mut news = Vec::new();
    from.read_to_end(&mut news)
        .context("read the command's output")?;
    if news.is_empty() {
        return Ok(());
    }
    match to.write_all(&news).and_then(|()| to.flush()) {
        // Nobody listens any more; the command's status still counts.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("pass on the command's output"),
    }
}

fn start_virtiofsd(socket: &Path) -> Result<Process> {
    let program = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("no virtiofsd: run scripts/setup.sh lab")?;
    let log = socket.with_extension("log");
    let mut command = Command::new(program);
    command
        .arg(format!("--socket-path={}", socket.display()))
        .args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=auto"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).context("create virtiofsd's log")?);
    let mut process = Process::spawn("virtiofsd", command, None)?;
    let deadline = Instant::now() + VIRTIOFSD_DEADLINE;
    while !socket.exists() {
        let said = || fs::read_to_string(&log).unwrap_or_default();
        if let Some(status) = process.try_wait()? {
            bail!("virtiofsd ended at its start: {status}: {}", said());
        }
        if Instant::now() >= deadline {
            bail!("virtiofsd does not listen: {}", said());
        }
        thread::sleep(POLL);
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reaches_the_command_as_it_is() {
        let words = [
            "printf", "%s|", "a b", "it's", "$HOME", "\"", "\\", "*", "", "\n",
        ];
        let run = KernelRun {
            environment: &[("KATAMARAN_WORD", "it's $x")],
            ..KernelRun::new(Kernel::V6_12, words)
        };
        let mut script = run.script();
        script.extend(b"");
        let output = Command::new("sh")
            .arg("-c")
            .arg(OsStr::from_bytes(&script))
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"a b|it's|$HOME|\"|\\|*||\n|");
        let text = String::from_utf8_lossy(&script).into_owned();
        assert!(text.contains("export KATAMARAN_WORD='it'\\''s $x'\n"));
    }
}
