//! One side of a migration by katamaran: a process on its node, as on real nodes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::result::SideResult;
use super::stage::{Stage, Storage};
use super::terminal::Terminal;
use crate::lab::{Guest, Identity, Lab, Node, Process, program_beside};

/// How long the destination may take until it listens.
const LISTEN_DEADLINE: Duration = Duration::from_secs(20);
/// How long a katamaran that is told to end may clean up.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(15);

/// Which side a katamaran is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// On A.
    Source,
    /// On B.
    Dest,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Dest => "dest",
        }
    }

    fn node(self) -> Node {
        match self {
            Self::Source => Node::A,
            Self::Dest => Node::B,
        }
    }
}

/// Where the standard error of a katamaran goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stderr {
    /// To a file, for [`KatamaranProcess::stderr`].
    #[default]
    Kept,
    /// Where our own goes: on a terminal, katamaran shows its progress there.
    Ours,
    /// To a pipe that nobody reads any more, and standard output as well.
    Closed,
    /// To a terminal, until [`KatamaranProcess::hang_up`].
    Terminal,
}

/// A katamaran at work on one node. Told to end (SIGTERM) on drop, and killed if it does not.
#[derive(Debug)]
pub struct KatamaranProcess {
    process: Process,
    stdout: PathBuf,
    stderr: PathBuf,
    report: PathBuf,
    terminal: Option<Terminal>,
}

impl KatamaranProcess {
    /// Starts one side with the flags that every migration needs, and then `args`.
    ///
    /// # Errors
    ///
    /// When the program is not there.
    pub fn start<A: AsRef<OsStr>>(stage: &Stage, role: Role, args: &[A]) -> Result<Self> {
        Self::start_with(stage, role, args, Stderr::Kept)
    }

    /// The same, with a choice of where standard error goes.
    ///
    /// # Errors
    ///
    /// When the program is not there.
    pub fn start_with<A: AsRef<OsStr>>(
        stage: &Stage,
        role: Role,
        args: &[A],
        stderr_to: Stderr,
    ) -> Result<Self> {
        let guest = match role {
            Role::Source => &stage.guest_a,
            Role::Dest => &stage.guest_b,
        };
        let mut flags: Vec<&OsStr> = Vec::new();
        let ids = (0..stage.drives.len()).map(|drive| format!("drive-virtio-disk{drive}"));
        let ids = ids.collect::<Vec<_>>().join(",");
        if !matches!(stage.options.storage, Storage::Local(_)) {
            flags.push("--shared-storage".as_ref());
        } else if stage.drives.len() > 1 {
            flags.extend(["--drive-id".as_ref(), OsStr::new(&ids)]);
        }
        flags.extend(args.iter().map(AsRef::as_ref));
        let cards = stage.lab.cards();
        Self::start_for(&stage.lab, &cards, guest, role, "", &flags, stderr_to)
    }

    /// Starts one side of some VM's migration; `who` tells its files from those of others.
    ///
    /// # Errors
    ///
    /// When the program is not there.
    pub fn start_for<A: AsRef<OsStr>>(
        lab: &Lab,
        cards: &[Identity],
        guest: &Guest,
        role: Role,
        who: &str,
        args: &[A],
        stderr_to: Stderr,
    ) -> Result<Self> {
        let file = |suffix: &str| {
            lab.dir()
                .join(format!("katamaran-{}{who}.{suffix}", role.name()))
        };
        let (stdout, stderr, report) = (file("stdout"), file("stderr"), file("report.json"));
        // The one of an earlier migration on this stage.
        fs::remove_file(&report).ok();
        let netns = lab.network().node(role.node());
        let mut command = Command::new(katamaran_binary()?);
        // The tap and its namespace are for katamaran to find.
        command.args(["--mode", role.name(), "--insecure-plaintext", "--report"]);
        command.arg(&report);
        command.arg("--qmp").arg(guest.qmp_path());
        if role == Role::Source {
            let b = lab.network().first(Node::B);
            command.arg(format!("--dest-ip={},{}", b.ipv4(), b.ipv6()));
            let own = |arg: &A| arg.as_ref().as_encoded_bytes().starts_with(b"--vm-ip=");
            if !args.iter().any(own) {
                let addresses = cards.iter().flat_map(Identity::addresses);
                let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
                command.arg(format!("--vm-ip={}", addresses.join(",")));
            }
        }
        command.args(args);
        let create =
            |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        command.stdin(Stdio::null()).stdout(create(&stdout)?);
        let mut terminal = None;
        match stderr_to {
            Stderr::Kept => drop(command.stderr(create(&stderr)?)),
            Stderr::Ours => drop(command.stderr(Stdio::inherit())),
            Stderr::Closed => {
                let (_, into) = std::io::pipe().context("make a pipe")?;
                command.stdout(into.try_clone().context("clone a pipe")?);
                command.stderr(into);
            }
            Stderr::Terminal => {
                let (ours, theirs) = Terminal::open(&stderr)?;
                command.stderr(theirs);
                terminal = Some(ours);
            }
        }
        let name = format!("katamaran {}{who}", role.name());
        let process = Process::spawn(&name, command, Some(netns))?;
        process.end_politely();
        Ok(Self {
            process,
            stdout,
            stderr,
            report,
            terminal,
        })
    }

    /// Closes the terminal that it writes to, as when somebody's window goes, and tells it so.
    ///
    /// # Errors
    ///
    /// When it has none, or has ended.
    pub fn hang_up(&mut self) -> Result<()> {
        let terminal = self.terminal.take().context("it has a terminal")?;
        terminal.close();
        self.process.signal(Signal::SIGHUP)
    }

    /// Stops the terminal that it writes to, as Ctrl-S does.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn stop_terminal(&mut self) -> Result<()> {
        let terminal = self.terminal.as_mut();
        terminal.context("it has a terminal")?.stop()
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    ///
    /// When it can't be waited for.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Where that is, for who reads it all the time.
    #[must_use]
    pub fn stderr_path(&self) -> &Path {
        &self.stderr
    }

    /// Waits until it listens on `port`, or has ended.
    ///
    /// # Errors
    ///
    /// When neither happens in 20 s.
    pub fn wait_until_listening(&mut self, lab: &Lab, port: u16) -> Result<()> {
        let netns = lab.network().node(Role::Dest.node());
        let deadline = Instant::now() + LISTEN_DEADLINE;
        let needle = format!(":{port:04X} ");
        loop {
            let listening = netns.run(|| {
                ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
                    .iter()
                    .any(|path| {
                        let table = fs::read_to_string(path).unwrap_or_default();
                        // Column 2 is the local address, column 4 the state; 0A is LISTEN.
                        table.lines().any(|line| {
                            let mut columns = line.split_whitespace().skip(1);
                            let local = format!("{} ", columns.next().unwrap_or_default());
                            local.ends_with(&needle) && columns.nth(1) == Some("0A")
                        })
                    })
            })?;
            if listening || self.process.try_wait()?.is_some() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "katamaran does not listen on port {port}:\n{}",
                    self.stderr()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it left, once it has ended.
    ///
    /// # Errors
    ///
    /// When it still runs.
    pub fn result(&mut self) -> Result<SideResult> {
        let Some(status) = self.process.try_wait()? else {
            bail!("{} still runs", self.process.name());
        };
        Ok(SideResult {
            status: status.code(),
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            report: serde_json::from_str(&read(&self.report)).ok(),
        })
    }
}

impl Drop for KatamaranProcess {
    fn drop(&mut self) {
        if self.process.signal(Signal::SIGTERM).is_ok() {
            // What it made in the kernel is its own to remove; a kill would leave it behind.
            self.process
                .wait_until(Instant::now() + CLEANUP_DEADLINE)
                .ok();
        }
    }
}

/// Runs one of katamaran's other commands on a node, to its end.
///
/// # Errors
///
/// When it can't be started.
pub fn katamaran_command(stage: &Stage, node: Node, args: &[&str]) -> Result<Output> {
    let program = katamaran_binary()?;
    let netns = stage.lab.network().node(node);
    netns
        .run(|| Command::new(program).args(args).output())?
        .with_context(|| format!("run katamaran {}", args.join(" ")))
}

/// The program under test: `$KATAMARAN_BIN`, or the one that was built beside this one.
///
/// # Errors
///
/// When it has not been built.
pub fn katamaran_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KATAMARAN_BIN") {
        return Ok(path.into());
    }
    program_beside("katamaran").context("set KATAMARAN_BIN to another one")
}

fn read(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}
