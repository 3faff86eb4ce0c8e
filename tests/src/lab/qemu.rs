//! Guests: a QEMU in a node's namespace, with one QMP socket for katamaran and one for the lab.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::identity::Identity;
use super::image::{GuestImage, cache_dir};
use super::netns::Netns;
use super::process::{Process, program_beside};
use super::qmp::Qmp;

const QMP_DEADLINE: Duration = Duration::from_secs(90);

/// Which QEMU to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuVersion {
    /// 7.2, the machine's own.
    V7_2,
    /// 10.0, unpacked in the lab's cache.
    V10_0,
    /// No QEMU at all, but [`crate::standin`].
    StandIn,
}

impl FromStr for QemuVersion {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "7.2" => Ok(Self::V7_2),
            "10.0" => Ok(Self::V10_0),
            "stand-in" => Ok(Self::StandIn),
            _ => bail!("unknown QEMU version {text}: 7.2, 10.0 or stand-in"),
        }
    }
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::V7_2 => "7.2",
            Self::V10_0 => "10.0",
            Self::StandIn => "stand-in",
        })
    }
}

impl QemuVersion {
    /// The command up to, and without, the first argument about the guest.
    pub(super) fn command(self) -> Result<Command> {
        match self {
            Self::V7_2 => Ok(Command::new("/usr/bin/qemu-system-x86_64")),
            Self::V10_0 => {
                let root = cache_dir().join("qemu-10.0");
                let program = root.join("usr/bin/qemu-system-x86_64");
                if !program.exists() {
                    bail!("{} is missing: run scripts/setup.sh", program.display());
                }
                let mut command = Command::new(program);
                command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.join(data));
                }
                Ok(command)
            }
            Self::StandIn => Ok(Command::new(program_beside("katamaran-standin")?)),
        }
    }
}

impl QemuVersion {
    /// The value of `-m`.
    ///
    /// Before 9.0, QEMU under TCG loses guest writes during a migration: where it clears 64 bits of
    /// the dirty bitmap at once, it forgets to make the next write to these pages slow again. The
    /// guest then goes on with corrupt memory. It does not take that path for a RAM size that is not
    /// a multiple of 64 pages.
    fn memory(self, mebibytes: u32) -> String {
        match self {
            Self::V7_2 => format!("{}K", mebibytes * 1024 + 8),
            Self::V10_0 | Self::StandIn => format!("{mebibytes}M"),
        }
    }
}

/// One CPU, and room for another that never comes.
///
/// With room for one only, TCG translates a locked instruction of the guest into a load and a store without
/// a barrier (`tcg_cpu_init_cflags`: no `CF_PARALLEL`), in 7.2 as in 10.0, although QEMU's own thread reads
/// the rings meanwhile. `lock addl` is what Linux makes `virtio_mb()` of: the guest then reads
/// `avail_event` before QEMU sees its new `avail->idx`, does not kick, and its queue stands still for ever
/// ("NETDEV WATCHDOG: transmit queue 0 timed out").
const ONE_CPU: &str = "1,maxcpus=2";

/// What a guest is made of; the same for both ends of a migration.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Which QEMU.
    pub qemu: QemuVersion,
    /// Its network cards, and who it is on the network by each: one, or two.
    pub cards: Vec<Identity>,
    /// MiB of RAM.
    pub memory_mib: u32,
    /// MTU of the guest's device.
    pub mtu: u32,
    /// Memory load from the start: MB/s over MiB.
    pub dirty: Option<(u64, u64)>,
    /// Raw disk images: the first becomes `drive-virtio-disk0`.
    pub drives: Vec<PathBuf>,
    /// Whether the drives' block nodes have names: `disk0` on top of `file0`, and so on.
    pub named_drives: bool,
    /// Whether the kernel moves packets between tap and guest (vhost-net).
    pub vhost: bool,
    /// More arguments for QEMU, on both ends.
    pub extra_args: Vec<String>,
}

/// Whether a guest boots or waits for a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Boots at once.
    Boot,
    /// `-S -incoming defer`: somebody has to let it run.
    Incoming,
    /// `-incoming defer`: runs by itself when the migration is complete.
    IncomingRun,
}

/// A running QEMU; killed on drop.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    qmp_path: PathBuf,
    lab_qmp_path: PathBuf,
    log_path: PathBuf,
    console_path: PathBuf,
}

impl Guest {
    /// Starts QEMU in `netns`; returns when its QMP sockets answer.
    ///
    /// # Errors
    ///
    /// With QEMU's own words when it ends instead.
    pub fn start(
        spec: &GuestSpec,
        image: &GuestImage,
        netns: &Netns,
        dir: &Path,
        name: &str,
        start: Start,
    ) -> Result<Self> {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let (qmp_path, lab_qmp_path) = (file("qmp"), file("lab-qmp"));
        let (log_path, console_path) = (file("log"), file("console"));
        let log = std::fs::File::create(&log_path)
            .with_context(|| format!("create {}", log_path.display()))?;
        let mut command = spec.qemu.command()?;
        command
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg",
                "-cpu",
                "max,-cx16",
                "-smp",
                ONE_CPU,
            ])
            .args(["-m", &spec.qemu.memory(spec.memory_mib)])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initramfs)
            .args(["-append", &kernel_command_line(spec)])
            .args(["-serial", &format!("file:{}", console_path.display())])
            .args(&spec.extra_args);
        for (number, card) in spec.cards.iter().enumerate() {
            let vhost = if spec.vhost { "on" } else { "off" };
            command.args([
                "-netdev",
                &format!(
                    "tap,id=net{number},ifname={},script=no,downscript=no,vhost={vhost}",
                    card.tap
                ),
                "-device",
                &format!(
                    "virtio-net-pci,id=nic{number},netdev=net{number},mac={},rx_queue_size=1024,romfile=",
                    card.mac
                ),
            ]);
        }
        for (id, path) in [("qmp0", &qmp_path), ("qmp1", &lab_qmp_path)] {
            command
                .args(["-chardev"])
                .arg(format!(
                    "socket,id={id},path={},server=on,wait=off",
                    path.display()
                ))
                .args(["-mon", &format!("chardev={id},mode=control")]);
        }
        for (index, drive) in spec.drives.iter().enumerate() {
            let id = format!("drive-virtio-disk{index}");
            let mut line = format!("file={},format=raw,if=none,id={id}", drive.display());
            if spec.named_drives {
                // Blocks of zeros take no room: a file system can get full at any time.
                line.push_str(&format!(
                    ",discard=unmap,node-name=disk{index},file.node-name=file{index}"
                ));
            }
            command.args(["-drive", &line]).args([
                "-device",
                &format!("virtio-blk-pci,drive={id},id=virtio-disk{index}"),
            ]);
        }
        match start {
            Start::Boot => {}
            Start::Incoming => drop(command.args(["-S", "-incoming", "defer"])),
            Start::IncomingRun => drop(command.args(["-incoming", "defer"])),
        }
        command.stdin(std::process::Stdio::null());
        command
            .stdout(log.try_clone().context("clone the log's descriptor")?)
            .stderr(log);
        let process = Process::spawn(name, command, Some(netns))?;
        let mut guest = Self {
            process,
            qmp_path,
            lab_qmp_path,
            log_path,
            console_path,
        };
        guest.wait_for_qmp()?;
        Ok(guest)
    }

    /// The QMP socket that is left to katamaran.
    #[must_use]
    pub fn qmp_path(&self) -> &Path {
        &self.qmp_path
    }

    /// A connection to the lab's own QMP socket; QEMU serves one at a time on it.
    ///
    /// # Errors
    ///
    /// When QEMU is gone.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.lab_qmp_path)
    }

    /// QEMU itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What QEMU and the guest's console have said so far.
    #[must_use]
    pub fn output(&self) -> String {
        let read = |path: &Path| {
            std::fs::read(path).map_or_else(
                |err| format!("({}: {err})", path.display()),
                |bytes| String::from_utf8_lossy(&bytes).into_owned(),
            )
        };
        format!(
            "QEMU:\n{}\nconsole:\n{}",
            read(&self.log_path),
            read(&self.console_path)
        )
    }

    fn wait_for_qmp(&mut self) -> Result<()> {
        let deadline = Instant::now() + QMP_DEADLINE;
        loop {
            match self.qmp() {
                Ok(_) => return Ok(()),
                Err(err) if Instant::now() >= deadline => {
                    return Err(err).with_context(|| self.output());
                }
                Err(_) => {}
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("QEMU ended at its start: {status}\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn kernel_command_line(spec: &GuestSpec) -> String {
    let [first, rest @ ..] = spec.cards.as_slice() else {
        return String::new();
    };
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off \
         ktg.ip={},{} ktg.mtu={}",
        first.v4, first.v6, spec.mtu
    );
    for second in rest {
        line.push_str(&format!(" ktg.ip1={},{}", second.v4, second.v6));
    }
    if let Some((rate, size)) = spec.dirty {
        line.push_str(&format!(" ktg.dirty={rate}:{size}"));
    }
    line
}
