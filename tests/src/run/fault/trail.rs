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
use crate::run::katamaran::{KatamaranProcess, Role};
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
    stand_still: [Arc<Side>; 2],
}

#[derive(Debug, Default)]
struct Shared {
    written: Written,
    struck: Option<Struck>,
    over: bool,
}

/// One of the two processes.
#[derive(Debug)]
struct Side {
    role: Role,
    pid: u32,
    /// A signal through it can't reach anybody else.
    pidfd: OwnedFd,
    log: PathBuf,
}

impl Side {
    fn of(role: Role, katamaran: &mut KatamaranProcess) -> Result<Arc<Self>> {
        let pid = katamaran.process().pid();
        // SAFETY: takes two integers, returns a descriptor that is ours or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
        let fd = i32::try_from(fd).context("a descriptor fits")?;
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a pidfd");
        }
        Ok(Arc::new(Self {
            role,
            pid,
            // SAFETY: just made, and nobody else's.
            pidfd: unsafe { OwnedFd::from_raw_fd(fd) },
            log: katamaran.stderr_path().to_owned(),
        }))
    }

    fn signal(&self, signal: Signal) {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: an open pidfd, a signal's number, and no more about it. It fails where the process has ended.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as i32,
                none,
                0_u32,
            )
        };
    }

    /// Its journal, while it has one.
    fn journal(&self) -> Option<PathBuf> {
        let needle = format!("\"pid\":{},", self.pid);
        let entries = fs::read_dir(JOURNALS).ok()?.flatten();
        let mut paths = entries.map(|entry| entry.path()).filter(|path| {
            let role = match self.role {
                Role::Source => "-source.journal",
                Role::Dest => "-destination.journal",
            };
            path.to_string_lossy().ends_with(role)
        });
        paths.find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&needle)))
    }

    fn read(&self, journal: &mut Option<PathBuf>, texts: &mut Texts) {
        if journal.is_none() {
            *journal = self.journal();
        }
        let settled = |path: &Path| {
            Path::new(JOURNALS)
                .join("settled")
                .join(path.file_name()?)
                .into()
        };
        let text = journal.as_deref().and_then(|path| {
            let moved: Option<PathBuf> = settled(path);
            fs::read_to_string(path)
                .or_else(|_| fs::read_to_string(moved.unwrap_or_default()))
                .ok()
        });
        if let Some(text) = text {
            texts.journal = text;
        }
        texts.log = fs::read_to_string(&self.log).unwrap_or_default();
    }
}

/// What is done in the thread, at once.
#[derive(Debug, Clone, Copy)]
pub(super) enum AtOnce {
    /// A katamaran gets a signal.
    Signal(Role, Signal),
    /// Both katamarans stand still until [`Trail::go_on`], so that there is time to do something else.
    StandStill,
}

impl Trail {
    /// Reads along, and does something as soon as `sign` is there. Without one, [`Trail::strike`] has to be called.
    pub(super) fn follow(
        source: &mut KatamaranProcess,
        dest: &mut KatamaranProcess,
        sign: Option<Sign>,
        at_once: AtOnce,
    ) -> Result<Self> {
        let sides = [Side::of(Role::Source, source)?, Side::of(Role::Dest, dest)?];
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (theirs, threads) = (sides.clone(), Arc::clone(&shared));
        let thread = thread::spawn(move || read_along(&theirs, &threads, sign, at_once));
        Ok(Self {
            shared,
            thread: Some(thread),
            stand_still: sides,
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
        act(&self.stand_still, at_once);
        let written = shared.written.clone();
        shared.struck = Some(Struck { at, at_ns, written });
    }

    /// Ends a standstill.
    pub(super) fn go_on(&self) {
        self.stand_still
            .iter()
            .for_each(|side| side.signal(Signal::SIGCONT));
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
        lock(&self.shared).over = true;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn act(sides: &[Arc<Side>; 2], at_once: AtOnce) {
    match at_once {
        AtOnce::Signal(role, signal) => {
            for side in sides.iter().filter(|side| side.role == role) {
                side.signal(signal);
            }
        }
        AtOnce::StandStill => sides.iter().for_each(|side| side.signal(Signal::SIGSTOP)),
    }
}

fn read_along(sides: &[Arc<Side>; 2], shared: &Mutex<Shared>, sign: Option<Sign>, at_once: AtOnce) {
    let mut journals = [None, None];
    let mut written = Written::default();
    let mut awaited = sign;
    loop {
        let mut read = |written: &mut Written| {
            sides[0].read(&mut journals[0], &mut written.source);
            sides[1].read(&mut journals[1], &mut written.dest);
        };
        read(&mut written);
        let due = awaited.is_some_and(|sign| written.has(sign));
        let mut struck = None;
        if due {
            awaited = None;
            let (at, at_ns) = (Instant::now(), now_ns());
            act(sides, at_once);
            read(&mut written);
            let written = written.clone();
            struck = Some(Struck { at, at_ns, written });
        }
        let mut shared = lock(shared);
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
