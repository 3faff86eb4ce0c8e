//! Child processes inside a namespace that never outlive the lab.
//!
//! A child enters its namespace with `setns` before it runs its program. `ip netns exec` would also
//! give it a mount namespace with a fresh `/sys`, and so hide bpffs from it.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::unistd::{Pid, getppid};

use super::netns::Netns;

/// How often an exit is looked for. There is no blocking wait with a deadline for one child.
const POLL: Duration = Duration::from_millis(5);

/// A child in a process group of its own; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` inside `netns` (or where the lab runs, with `None`).
    ///
    /// # Errors
    ///
    /// When the namespace or the program can't be opened.
    pub fn spawn(name: &str, mut command: Command, netns: Option<&Netns>) -> Result<Self> {
        let namespace = match netns {
            Some(netns) => {
                Some(File::open(netns.path()).with_context(|| format!("open {}", netns.name()))?)
            }
            None => None,
        };
        let parent = Pid::this();
        command.process_group(0);
        // SAFETY: between fork and exec only system calls are made: no allocation, no locks.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                // The lab's binary blocks the signals that its signal thread waits for.
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
                if let Some(namespace) = &namespace {
                    setns(namespace, CloneFlags::CLONE_NEWNET)?;
                }
                Ok(())
            });
        }
        let child = spawn_from_immortal_thread(command).with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            status: None,
        })
    }

    /// The process id, which is also the id of its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it was called at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child's pipes, for those that were asked for.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The exit status, when there is one already.
    ///
    /// # Errors
    ///
    /// When the child can't be waited for.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .with_context(|| format!("wait for {}", self.name))?;
        }
        Ok(self.status)
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// When it still runs at the deadline.
    pub fn wait_until(&mut self, deadline: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} (pid {}) still runs at its deadline",
                    self.name,
                    self.pid()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Sends a signal to the process and its children.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.try_wait()? {
            bail!("{} has ended already: {status}", self.name);
        }
        let group = Pid::from_raw(i32::try_from(self.pid()).context("a pid fits i32")?);
        killpg(group, signal).with_context(|| format!("signal {}", self.name))
    }

    /// Kills the process group and reaps the process.
    pub fn kill(&mut self) {
        if self.status.is_some() {
            return;
        }
        // Not reaped yet, so the pid can't have been given to anybody else.
        if let Ok(group) = i32::try_from(self.child.id()) {
            // Only fails when all of them have ended by themselves.
            killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
        }
        self.status = Some(
            self.child
                .wait()
                .unwrap_or_else(|_| ExitStatus::from_raw(9)),
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program that was built together with the one that runs: target/debug/katamaran-lab, or
/// `target/debug/deps/some_test-HASH`.
///
/// # Errors
///
/// When it is not there.
pub(crate) fn program_beside(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} beside this program: run cargo build --workspace"))
}

/// Processes that clean up after themselves when they are told to end.
static POLITE: Mutex<Vec<u32>> = Mutex::new(Vec::new());

impl Process {
    /// Has a signal to the lab's program passed on to this process, with time to clean up.
    pub fn end_politely(&self) {
        POLITE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.pid());
    }
}

/// Tells polite processes to end and waits for that, at most until `deadline`.
pub(crate) fn end_polite_processes(deadline: Instant) {
    let mut pids = POLITE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    pids.retain(|pid| is_running_child(*pid));
    for pid in &pids {
        if let Ok(pid) = i32::try_from(*pid) {
            // It may have ended just now.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
    }
    while Instant::now() < deadline && pids.iter().any(|pid| is_running_child(*pid)) {
        thread::sleep(POLL);
    }
}

/// Whether a process is ours and has not ended: a pid in a list may be somebody else's by now.
fn is_running_child(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let (state, parent) = (fields.next(), fields.next());
    state.is_some_and(|state| !matches!(state, "" | "Z" | "X"))
        && parent.and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}

type Request = (Command, Sender<io::Result<Child>>);

/// Forks on a thread that lives as long as the program.
///
/// The kernel sends the parent-death signal when the *thread* that forked ends, not the process.
fn spawn_from_immortal_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in requests {
                drop(reply.send(command.spawn()));
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = channel();
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply))
        .map_err(|err| anyhow!("the spawner thread is gone: {err}"))?;
    Ok(answer.recv().context("the spawner thread is gone")??)
}
