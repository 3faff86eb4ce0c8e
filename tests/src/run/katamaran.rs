//! A migration by katamaran: one process on each node, as on real nodes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::result::{MigrationRun, SideResult};
use super::stage::{Stage, StageOptions, Storage, Timeline};
use crate::lab::{GUEST_V4, GUEST_V6, Node, Process, TAP};
use crate::leak::{Scope, Snapshot, session_pins};

/// How long the destination may take until it listens.
const LISTEN_DEADLINE: Duration = Duration::from_secs(20);
/// How long a katamaran that is told to end may clean up.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(15);
/// How long one side may go on alone before it is told to end.
const ABANDONED_AFTER: Duration = Duration::from_secs(20);
/// How long the kernel may take to free what katamaran had.
const LEAK_DEADLINE: Duration = Duration::from_secs(5);
/// One look at both QEMUs.
const WATCH: Duration = Duration::from_millis(4);

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

/// One run.
#[derive(Debug, Clone)]
pub struct MigrationOptions {
    /// What is in place before.
    pub stage: StageOptions,
    /// How long after V's RESUME on B the fabric's route is moved.
    pub converge_after: Duration,
    /// The whole migration, linger included.
    pub deadline: Duration,
    /// What is looked at for leaks, if anything.
    pub leaks: Option<Scope>,
    /// More flags for the source.
    pub source_args: Vec<String>,
    /// More flags for the destination.
    pub dest_args: Vec<String>,
}

impl Default for MigrationOptions {
    fn default() -> Self {
        Self {
            stage: StageOptions::default(),
            converge_after: Duration::from_millis(500),
            deadline: Duration::from_secs(120),
            leaks: Some(Scope::NamespacesOnly),
            source_args: Vec::new(),
            dest_args: Vec::new(),
        }
    }
}

/// A katamaran at work on one node. Told to end (SIGTERM) on drop, and killed if it does not.
#[derive(Debug)]
pub struct KatamaranProcess {
    process: Process,
    stdout: PathBuf,
    stderr: PathBuf,
    report: PathBuf,
}

impl KatamaranProcess {
    /// Starts one side with the flags that every migration needs, and then `args`.
    ///
    /// # Errors
    ///
    /// When the program is not there.
    pub fn start<A: AsRef<OsStr>>(stage: &Stage, role: Role, args: &[A]) -> Result<Self> {
        let file = |suffix: &str| {
            stage
                .lab
                .dir()
                .join(format!("katamaran-{}.{suffix}", role.name()))
        };
        let (stdout, stderr, report) = (file("stdout"), file("stderr"), file("report.json"));
        let netns = stage.lab.network().node(role.node());
        let mut command = Command::new(katamaran_binary()?);
        command.args(["--mode", role.name(), "--insecure-plaintext", "--tap", TAP]);
        command
            .arg("--tap-netns")
            .arg(netns.path())
            .arg("--report")
            .arg(&report);
        let guest = match role {
            Role::Source => &stage.guest_a,
            Role::Dest => &stage.guest_b,
        };
        command.arg("--qmp").arg(guest.qmp_path());
        if role == Role::Source {
            command.arg(format!("--dest-ip={},{}", Node::B.ipv4(), Node::B.ipv6()));
            command.arg(format!("--vm-ip={GUEST_V4},{GUEST_V6}"));
        }
        if !matches!(stage.options.storage, Storage::Local(_)) {
            command.arg("--shared-storage");
        }
        command.args(args);
        let create =
            |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        command
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?);
        let name = format!("katamaran {}", role.name());
        let process = Process::spawn(&name, command, Some(netns))?;
        process.end_politely();
        Ok(Self {
            process,
            stdout,
            stderr,
            report,
        })
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

    /// Waits until it listens on `port`, or has ended.
    ///
    /// # Errors
    ///
    /// When neither happens in 20 s.
    pub fn wait_until_listening(&mut self, stage: &Stage, port: u16) -> Result<()> {
        let netns = stage.lab.network().node(Role::Dest.node());
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

/// Migrates V from A to B with katamaran, traffic on, and moves the fabric's route some time after
/// V has resumed. A failed migration is a result: see the exit states.
///
/// # Errors
///
/// When the stage can't be set, or a katamaran still runs at the deadline.
pub fn run_migration(options: MigrationOptions) -> Result<MigrationRun> {
    let mut stage = Stage::set(options.stage.clone())?;
    let before = match options.leaks {
        Some(scope) => Some(Snapshot::take(scope, stage.nodes())?),
        None => None,
    };
    let started = Instant::now();
    let mut dest = KatamaranProcess::start(&stage, Role::Dest, &options.dest_args)?;
    dest.wait_until_listening(&stage, port(&options.dest_args))?;
    let mut source = KatamaranProcess::start(&stage, Role::Source, &options.source_args)?;
    let mut timeline = Timeline::default();
    let mut alone_since = None;
    loop {
        let (source_runs, dest_runs) = (source.runs()?, dest.runs()?);
        if !source_runs && !dest_runs {
            break;
        }
        if source_runs != dest_runs {
            let since = *alone_since.get_or_insert_with(Instant::now);
            if since.elapsed() > ABANDONED_AFTER {
                let left = if source_runs { &mut source } else { &mut dest };
                // It may have ended just now; if not, it cleans up and does.
                left.process.signal(Signal::SIGTERM).ok();
            }
        }
        stage.watch(&mut timeline, WATCH, options.converge_after)?;
        if started.elapsed() > options.deadline {
            bail!(
                "still migrating after {:?}\nsource:\n{}\ndest:\n{}",
                options.deadline,
                source.stderr(),
                dest.stderr()
            );
        }
    }
    let total_ms = started.elapsed().as_secs_f64() * 1e3;
    // The last look, also for a route that is not due yet.
    stage.watch(&mut timeline, WATCH, Duration::ZERO)?;
    let (source, dest) = (source.result()?, dest.result()?);
    let session = [&source, &dest].into_iter().flat_map(|side| &side.report);
    let session = session
        .filter_map(|report| report["session"].as_str())
        .next();
    let leaks = match (&before, options.leaks) {
        (Some(before), Some(scope)) => leaks(&stage, before, scope, session)?,
        _ => Vec::new(),
    };
    let (client, silence) = stage.finish_traffic()?;
    Ok(MigrationRun {
        kind: "katamaran".to_owned(),
        client,
        silence,
        leaks,
        downtime_ms: timeline.downtime_ms(),
        qemu_downtime_ms: source
            .report
            .as_ref()
            .and_then(|report| report["qemu_downtime_ms"].as_f64()),
        stop_ns: timeline.stop_ns,
        resume_ns: timeline.resume_ns,
        converged_ns: timeline.converged_ns,
        total_ms,
        source: Some(source),
        dest: Some(dest),
    })
}

/// What is there now on the nodes that was not there before, or the other way round.
fn leaks(
    stage: &Stage,
    before: &Snapshot,
    scope: Scope,
    session: Option<&str>,
) -> Result<Vec<String>> {
    let deadline = Instant::now() + LEAK_DEADLINE;
    loop {
        let mut diff = before.diff(&Snapshot::take(scope, stage.nodes())?);
        diff.extend(session.map(session_pins).unwrap_or_default());
        // V's QEMU on A may end with the migration.
        diff.retain(|line| !line.starts_with("- process"));
        if diff.is_empty() || Instant::now() >= deadline {
            return Ok(diff);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The port among the flags, or the default one.
fn port(args: &[String]) -> u16 {
    let at = args.iter().position(|arg| arg == "--port");
    at.and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(7482)
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
    let this = std::env::current_exe().context("find this program")?;
    // target/debug/katamaran-lab, or target/debug/deps/some_test-<hash>.
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("katamaran"))
        .find(|path| path.is_file())
        .context("no katamaran beside this program: run cargo build, or set KATAMARAN_BIN")
}

fn read(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}
