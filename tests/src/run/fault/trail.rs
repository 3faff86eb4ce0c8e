//! What both katamarans write while they work: read all along, so that something can be done the moment when they
//! come to a step, and so that it is known afterwards how far each of them was.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::moment::Sign;
use crate::lab::Node;
use crate::run::katamaran::Role;
use crate::run::migration::Migration;
use crate::traffic::now_ns;

const JOURNALS: &str = "/run/katamaran";
/// Between two looks before the moment. A step may last no longer than this.
const CLOSE: Duration = Duration::from_micros(50);
/// Between two looks after it.
const CALM: Duration = Duration::from_millis(2);

/// The two sides' journals and logs, as they were at some time. A journal that is gone is known as it was last.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    source: Texts,
    dest: Texts,
}

#[derive(Debug, Clone, Default)]
struct Texts {
    journal: String,
    log: String,
}

impl Written {
    fn of(&self, role: Role) -> &Texts {
        match role {
            Role::Source => &self.source,
            Role::Dest => &self.dest,
        }
    }

    pub(super) fn has(&self, sign: Sign) -> bool {
        match sign {
            Sign::Logged(role, text) => self.of(role).log.contains(text),
            Sign::Phase(role, name) => {
                let text = format!("\"record\":\"phase\",\"name\":\"{name}\"");
                self.of(role).journal.contains(&text)
            }
            Sign::Record(role, name) => {
                let text = format!("\"record\":\"{name}\"");
                self.of(role).journal.contains(&text)
            }
            Sign::Jobs => false,
        }
    }

    /// The session, once a side has a journal.
    pub(super) fn session(&self) -> Option<String> {
        let mut journals = [&self.source, &self.dest].into_iter();
        journals.find_map(|texts| {
            let line = texts.journal.lines().next()?;
            let begun: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(begun["session"].as_str()?.to_owned())
        })
    }
}

/// When it was, and how far both sides were.
#[derive(Debug, Clone)]
pub(super) struct Struck {
    pub(super) at: Instant,
    pub(super) at_ns: u64,
    pub(super) written: Written,
}

/// Reads along, in a thread.
#[derive(Debug)]
pub(super) struct Trail {
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
    processes: Arc<Processes>,
}

#[derive(Debug, Default)]
struct Shared {
    written: Written,
    struck: Option<Struck>,
    over: bool,
}

/// A process that a signal goes to, and to nobody else.
#[derive(Debug)]
struct Pidfd(OwnedFd);

impl Pidfd {
    fn of(pid: u32) -> Result<Self> {
        // SAFETY: takes two integers, returns a descriptor that is ours or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
        let fd = i32::try_from(fd).context("a descriptor fits")?;
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a pidfd");
        }
        // SAFETY: just made, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Does nothing where the process has ended.
    fn signal(&self, signal: Signal) {
        let (fd, none) = (self.0.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: an open pidfd, a signal's number, and no more about it.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, none, 0_u32) };
    }
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Katamaran(Role),
    /// The QEMU on a node.
    Qemu(Node),
}

#[derive(Debug)]
struct Processes {
    source: Pidfd,
    dest: Pidfd,
    qemu_a: Pidfd,
    qemu_b: Pidfd,
}

impl Processes {
    fn of(migration: &mut Migration<'_>) -> Result<Self> {
        let stage = &mut *migration.stage;
        Ok(Self {
            source: Pidfd::of(migration.source.process().pid())?,
            dest: Pidfd::of(migration.dest.process().pid())?,
            qemu_a: Pidfd::of(stage.guest_a.process().pid())?,
            qemu_b: Pidfd::of(stage.guest_b.process().pid())?,
        })
    }

    fn act(&self, at_once: AtOnce) {
        match at_once {
            AtOnce::Signal(target, signal) => self.of_target(target).signal(signal),
            AtOnce::StandStill => self.both(Signal::SIGSTOP),
            AtOnce::Note => {}
        }
    }

    fn of_target(&self, target: Target) -> &Pidfd {
        match target {
            Target::Katamaran(Role::Source) => &self.source,
            Target::Katamaran(Role::Dest) => &self.dest,
            Target::Qemu(Node::A) => &self.qemu_a,
            Target::Qemu(Node::B) => &self.qemu_b,
        }
    }

    fn both(&self, signal: Signal) {
        self.source.signal(signal);
        self.dest.signal(signal);
    }
}

/// What one of the two katamarans writes.
#[derive(Debug)]
struct Side {
    role: Role,
    pid: u32,
    log: PathBuf,
    journal: Option<PathBuf>,
}

impl Side {
    fn of(role: Role, migration: &mut Migration<'_>) -> Self {
        let side = migration.side(role);
        Self {
            role,
            pid: side.process().pid(),
            log: side.stderr_path().to_owned(),
            journal: None,
        }
    }

    /// Its journal, while it has one.
    fn find_journal(&self) -> Option<PathBuf> {
        let needle = format!("\"pid\":{},", self.pid);
        let suffix = match self.role {
            Role::Source => "-source.journal",
            Role::Dest => "-destination.journal",
        };
        let entries = fs::read_dir(JOURNALS).ok()?.flatten();
        let mut paths = entries.map(|entry| entry.path());
        paths.find(|path| {
            path.to_string_lossy().ends_with(suffix)
                && fs::read_to_string(path).is_ok_and(|text| text.contains(&needle))
        })
    }

    fn read(&mut self, texts: &mut Texts) {
        if self.journal.is_none() {
            self.journal = self.find_journal();
        }
        if let Some(path) = &self.journal {
            let name = path.file_name().unwrap_or_default();
            let settled = Path::new(JOURNALS).join("settled").join(name);
            let text = fs::read_to_string(path).or_else(|_| fs::read_to_string(settled));
            if let Ok(text) = text {
                texts.journal = text;
            }
        }
        texts.log = fs::read_to_string(&self.log).unwrap_or_default();
    }
}

/// What is done in the thread, at once.
#[derive(Debug, Clone, Copy)]
pub(super) enum AtOnce {
    /// Somebody gets a signal.
    Signal(Target, Signal),
    /// Both katamarans stand still until [`Trail::go_on`], so that there is time to do something else.
    StandStill,
    /// Nothing. QEMU's disks would stand still as well, for their mirrors pass through katamaran.
    Note,
}

impl Trail {
    /// Reads along, and does something as soon as `sign` is there. Without one, [`Trail::strike`] has to be called.
    pub(super) fn follow(
        migration: &mut Migration<'_>,
        sign: Option<Sign>,
        at_once: AtOnce,
    ) -> Result<Self> {
        let processes = Arc::new(Processes::of(migration)?);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let reader = Reader {
            source: Side::of(Role::Source, migration),
            dest: Side::of(Role::Dest, migration),
            processes: Arc::clone(&processes),
            shared: Arc::clone(&shared),
        };
        let thread = Some(thread::spawn(move || reader.run(sign, at_once)));
        Ok(Self {
            shared,
            thread,
            processes,
        })
    }

    /// When it was done, once it was.
    pub(super) fn struck(&self) -> Option<Struck> {
        lock(&self.shared).struck.clone()
    }

    /// Does it now.
    pub(super) fn strike(&self, at_once: AtOnce) {
        let mut shared = lock(&self.shared);
        let (at, at_ns) = (Instant::now(), now_ns());
        self.processes.act(at_once);
        let written = shared.written.clone();
        shared.struck = Some(Struck { at, at_ns, written });
    }

    /// Ends a standstill.
    pub(super) fn go_on(&self) {
        self.processes.both(Signal::SIGCONT);
    }

    /// Sends somebody a signal, later than at once.
    pub(super) fn signal(&self, target: Target, signal: Signal) {
        self.processes.of_target(target).signal(signal);
    }

    /// All that was written so far.
    pub(super) fn written(&self) -> Written {
        lock(&self.shared).written.clone()
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        // Nobody else would let them go on.
        self.go_on();
        for node in [Node::A, Node::B] {
            self.signal(Target::Qemu(node), Signal::SIGCONT);
        }
        lock(&self.shared).over = true;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread runs before all others that want to, if it may: a step lasts some hundred microseconds, and the machine is busy.
fn go_first() {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads one `sched_param`, which lives. Where it is not allowed, steps are overshot more often.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
}

struct Reader {
    source: Side,
    dest: Side,
    processes: Arc<Processes>,
    shared: Arc<Mutex<Shared>>,
}

impl Reader {
    fn read(&mut self, written: &mut Written) {
        self.source.read(&mut written.source);
        self.dest.read(&mut written.dest);
    }

    fn run(mut self, sign: Option<Sign>, at_once: AtOnce) {
        go_first();
        let mut written = Written::default();
        let mut awaited = sign;
        loop {
            self.read(&mut written);
            let mut struck = None;
            if awaited.is_some_and(|sign| written.has(sign)) {
                awaited = None;
                let (at, at_ns) = (Instant::now(), now_ns());
                self.processes.act(at_once);
                self.read(&mut written);
                let written = written.clone();
                struck = Some(Struck { at, at_ns, written });
            }
            let mut shared = lock(&self.shared);
            shared.written.clone_from(&written);
            shared.struck = struck.or(shared.struck.take());
            if shared.over {
                return;
            }
            drop(shared);
            thread::sleep(match awaited {
                Some(_) => CLOSE,
                None => CALM,
            });
        }
    }
}
