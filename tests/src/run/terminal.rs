//! A terminal with somebody in front of it, who may go away.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

/// Between two looks at whether it is to be closed.
const LOOK: Duration = Duration::from_millis(20);

/// The end where somebody reads. What comes is kept in a file.
#[derive(Debug)]
pub(super) struct Terminal {
    closing: Arc<AtomicBool>,
    keyboard: File,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// One, and the end for a program.
    pub(super) fn open(kept_in: &Path) -> Result<(Self, OwnedFd)> {
        // Not inherited by anybody, or it would stay open.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).context("open a terminal")?;
        grantpt(&master).context("grant a terminal")?;
        unlockpt(&master).context("unlock a terminal")?;
        let name = ptsname_r(&master).context("name a terminal")?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let slave = options
            .open(&name)
            .with_context(|| format!("open {name}"))?;
        let mut file = File::create(kept_in).context("create a file for a terminal")?;
        let closing = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&closing);
        let mut master = File::from(OwnedFd::from(master));
        let keyboard = master.try_clone().context("clone a terminal")?;
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !told.load(Ordering::Relaxed) {
                let mut readable = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
                let wait = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
                if !matches!(poll(&mut readable, wait), Ok(1..)) {
                    continue;
                }
                match master.read(&mut bytes) {
                    Ok(length) if length > 0 => drop(file.write_all(&bytes[..length])),
                    // The program has ended.
                    _ => return,
                }
            }
        });
        let terminal = Self {
            closing,
            keyboard,
            reader: Some(reader),
        };
        Ok((terminal, slave.into()))
    }

    /// Presses Ctrl-S: whoever writes waits from now on.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.keyboard.write_all(&[0x13]).context("press Ctrl-S")
    }

    /// Goes away: whatever is written from now on fails.
    pub(super) fn close(mut self) {
        self.end();
        drop(self);
    }

    fn end(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.end();
    }
}
