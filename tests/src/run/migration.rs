//! A migration by katamaran, one look at a time, so that a test can step in at any moment.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;

use super::katamaran::{KatamaranProcess, Role, Stderr};
use super::result::{MigrationRun, SideResult};
use super::stage::{Stage, StageOptions};
use super::timeline::Timeline;
use crate::lab::Node;
use crate::leak::{Scope, Snapshot, session_files};

/// [`MigrationOptions::patience`], unless there is a reason.
const ABANDONED_AFTER: Duration = Duration::from_secs(20);
/// How long the kernel may take to free what katamaran had.
pub(super) const LEAK_DEADLINE: Duration = Duration::from_secs(5);
/// One look at both QEMUs.
const WATCH: Duration = Duration::from_millis(4);

/// One run.
#[derive(Debug, Clone)]
pub struct MigrationOptions {
    /// What is in place before.
    pub stage: StageOptions,
    /// How long after V's RESUME on B the fabric's route is moved.
    pub converge_after: Duration,
    /// The whole migration, linger included.
    pub deadline: Duration,
    /// How long one side may go on alone before it is told to end.
    pub patience: Duration,
    /// What is looked at for leaks, if anything.
    pub leaks: Option<Scope>,
    /// More flags for the source.
    pub source_args: Vec<String>,
    /// More flags for the destination.
    pub dest_args: Vec<String>,
    /// Where the source's standard error goes.
    pub source_stderr: Stderr,
}

impl Default for MigrationOptions {
    fn default() -> Self {
        Self {
            stage: StageOptions::default(),
            converge_after: Duration::from_millis(500),
            deadline: Duration::from_secs(120),
            patience: ABANDONED_AFTER,
            leaks: Some(Scope::NamespacesOnly),
            source_args: Vec::new(),
            dest_args: Vec::new(),
            source_stderr: Stderr::Kept,
        }
    }
}

/// Both katamarans at work on a stage.
#[derive(Debug)]
pub struct Migration<'a> {
    /// Where it is played.
    pub stage: &'a mut Stage,
    /// The katamaran on A.
    pub source: KatamaranProcess,
    /// The katamaran on B.
    pub dest: KatamaranProcess,
    /// What the two QEMUs have reported so far.
    pub timeline: Timeline,
    converge_after: Duration,
    deadline: Duration,
    patience: Duration,
    before: Option<(Scope, Snapshot)>,
    started: Instant,
    alone_since: Option<Instant>,
}

/// What both katamarans came to.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The one on A.
    pub source: SideResult,
    /// The one on B.
    pub dest: SideResult,
    /// What they left behind on the nodes, if that was looked at.
    pub leaks: Vec<String>,
    /// From the start until both had ended.
    pub took: Duration,
}

impl<'a> Migration<'a> {
    /// Starts the destination, waits until it listens, and starts the source.
    ///
    /// # Errors
    ///
    /// When one of them can't be started.
    pub fn begin(stage: &'a mut Stage, options: &MigrationOptions) -> Result<Self> {
        Self::begin_after(stage, options, |_| Ok(()))
    }

    /// The same, with something between the destination's waiting and the source's start.
    ///
    /// # Errors
    ///
    /// Also when that fails.
    pub fn begin_after(
        stage: &'a mut Stage,
        options: &MigrationOptions,
        between: impl FnOnce(&Stage) -> Result<()>,
    ) -> Result<Self> {
        let before = match options.leaks {
            Some(scope) => Some((scope, Snapshot::take(scope, stage.nodes())?)),
            None => None,
        };
        let started = Instant::now();
        let mut dest = KatamaranProcess::start(stage, Role::Dest, &options.dest_args)?;
        dest.wait_until_listening(&stage.lab, port(&options.dest_args))?;
        between(stage)?;
        let source = KatamaranProcess::start_with(
            stage,
            Role::Source,
            &options.source_args,
            options.source_stderr,
        )?;
        Ok(Self {
            stage,
            source,
            dest,
            timeline: Timeline::default(),
            converge_after: options.converge_after,
            deadline: options.deadline,
            patience: options.patience,
            before,
            started,
            alone_since: None,
        })
    }

    /// The katamaran of one side.
    pub fn side(&mut self, role: Role) -> &mut KatamaranProcess {
        match role {
            Role::Source => &mut self.source,
            Role::Dest => &mut self.dest,
        }
    }

    /// Takes note of what the QEMUs report for some milliseconds, and moves the route when it is due.
    /// A side that is long alone is told to end. Returns whether any side still runs.
    ///
    /// # Errors
    ///
    /// When the migration's deadline has passed.
    pub fn look(&mut self) -> Result<bool> {
        let (source_runs, dest_runs) = (self.source.runs()?, self.dest.runs()?);
        if source_runs != dest_runs {
            let since = *self.alone_since.get_or_insert_with(Instant::now);
            if since.elapsed() > self.patience {
                let role = if source_runs {
                    Role::Source
                } else {
                    Role::Dest
                };
                // It may have ended just now; if not, it cleans up and does.
                self.side(role).process().signal(Signal::SIGTERM).ok();
            }
        }
        self.stage
            .watch(&mut self.timeline, WATCH, self.converge_after)?;
        if self.started.elapsed() > self.deadline {
            bail!("still migrating after {:?}\n{}", self.deadline, self.said());
        }
        Ok(source_runs || dest_runs)
    }

    /// Looks until `reached` says that it has come to `what`.
    ///
    /// # Errors
    ///
    /// When both sides end, or the migration's deadline passes, before that.
    pub fn look_until(
        &mut self,
        what: &str,
        mut reached: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        while !reached(self)? {
            if !self.look()? {
                bail!("the migration ended before {what}\n{}", self.said());
            }
        }
        Ok(())
    }

    /// Looks until a side has logged `text`.
    ///
    /// # Errors
    ///
    /// As [`Migration::look_until`].
    pub fn look_until_logged(&mut self, role: Role, text: &str) -> Result<()> {
        self.look_until(text, |migration| {
            Ok(migration.side(role).stderr().contains(text))
        })
    }

    /// Signals a side and looks until it has ended. Returns how long that took.
    ///
    /// # Errors
    ///
    /// When it still runs after `within`.
    pub fn signal(&mut self, role: Role, signal: Signal, within: Duration) -> Result<Duration> {
        self.side(role).process().signal(signal)?;
        let told = Instant::now();
        while self.side(role).runs()? {
            self.look()?;
            ensure!(
                told.elapsed() < within,
                "{signal} has not ended it in {within:?}\n{}",
                self.said()
            );
        }
        Ok(told.elapsed())
    }

    /// What both sides have logged so far.
    #[must_use]
    pub fn said(&self) -> String {
        let (source, dest) = (self.source.stderr(), self.dest.stderr());
        format!("source:\n{source}\ndest:\n{dest}")
    }

    /// Looks until both sides have ended.
    ///
    /// # Errors
    ///
    /// When one still runs at the migration's deadline.
    pub fn end(mut self) -> Result<(Ended, Timeline)> {
        while self.look()? {}
        let took = self.started.elapsed();
        // The last look, also for a route that is not due yet.
        self.stage
            .watch(&mut self.timeline, WATCH, Duration::ZERO)?;
        let (source, dest) = (self.source.result()?, self.dest.result()?);
        let session = [&source, &dest].into_iter().flat_map(|side| &side.report);
        let session = session
            .filter_map(|report| report["session"].as_str())
            .next();
        let runs_on_b = self.timeline.resume_ns.is_some();
        let leaks = match &self.before {
            Some((scope, before)) => leaks(self.stage, before, *scope, session, runs_on_b)?,
            None => Vec::new(),
        };
        let ended = Ended {
            source,
            dest,
            leaks,
            took,
        };
        Ok((ended, self.timeline))
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
    run_migration_on(&mut stage, &options)
}

/// The same on a stage that is set.
///
/// # Errors
///
/// When a katamaran still runs at the deadline, or a socket failed on the way.
pub fn run_migration_on(stage: &mut Stage, options: &MigrationOptions) -> Result<MigrationRun> {
    let (ended, timeline) = Migration::begin(stage, options)?.end()?;
    settle(stage, ended, &timeline)
}

/// Stops the traffic and puts everything together.
///
/// # Errors
///
/// When a socket failed on the way.
pub fn settle(stage: &mut Stage, ended: Ended, timeline: &Timeline) -> Result<MigrationRun> {
    let (client, silence) = stage.finish_traffic()?;
    let guest = stage.lab.guest_command("status").ok();
    Ok(MigrationRun {
        received_by_guest: stage.received_by_guest(guest.as_deref()),
        guest,
        kind: "katamaran".to_owned(),
        client,
        silence,
        leaks: ended.leaks,
        downtime_ms: timeline.downtime_ms(),
        qemu_downtime_ms: ended
            .source
            .report
            .as_ref()
            .and_then(|report| report["qemu_downtime_ms"].as_f64()),
        stop_ns: timeline.stop_ns,
        resume_ns: timeline.resume_ns,
        converged_ns: timeline.converged_ns,
        total_ms: ended.took.as_secs_f64() * 1e3,
        source: Some(ended.source),
        dest: Some(ended.dest),
    })
}

/// What is there now on the nodes that was not there before, or the other way round; but for what stays where V runs.
pub(super) fn leaks(
    stage: &Stage,
    before: &Snapshot,
    scope: Scope,
    session: Option<&str>,
    runs_on_b: bool,
) -> Result<Vec<String>> {
    let b = stage.lab.network().guest_netns(Node::B).name();
    let cards = stage.lab.cards();
    let is_leak = |line: &str| !(runs_on_b && cards.iter().any(|card| is_kept(line, b, &card.tap)));
    let deadline = Instant::now() + LEAK_DEADLINE;
    loop {
        let mut diff = before.diff(&Snapshot::take(scope, stage.nodes())?);
        diff.extend(session.map(session_files).unwrap_or_default());
        // V's QEMU on A may end with the migration.
        diff.retain(|line| !line.starts_with("- process") && is_leak(line));
        if diff.is_empty() || Instant::now() >= deadline {
            return Ok(diff);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What stays on purpose where a VM runs: to take it away from a tap in use would lose packets.
pub(super) fn is_kept(line: &str, netns: &str, tap: &str) -> bool {
    let place = format!("{netns}: ");
    let Some((_, what)) = line.split_once(&place) else {
        return false;
    };
    what.starts_with(&format!("txqueuelen {tap} "))
        || (what.starts_with("qdisc ") && what.contains("\"plug\"") && what.contains(tap))
}

/// The port among the flags, or the default one.
fn port(args: &[String]) -> u16 {
    let at = args.iter().position(|arg| arg == "--port");
    at.and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(7482)
}
