//! Standard error, for which nothing waits. A terminal can be stopped (Ctrl-S), a pipe can be full, and either can be closed: a
//! migration with its VM paused must not stand still for a line of its log.
//!
//! What may block is written by a thread of its own, in order; what does not fit its backlog is lost. A file is written at once.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::stat::{SFlag, fstat};

/// Pieces that may wait to be written.
const BACKLOG: usize = 4096;

enum Piece {
    Bytes(Vec<u8>),
    /// Everything before it is out.
    Mark(SyncSender<()>),
}

/// None where nothing blocks.
static WRITER: OnceLock<Option<SyncSender<Piece>>> = OnceLock::new();

/// Writes, now or soon. That it fails is nobody's business.
pub fn write(bytes: &[u8]) {
    match WRITER.get_or_init(start) {
        Some(writer) => drop(writer.try_send(Piece::Bytes(bytes.to_vec()))),
        None => drop(io::stderr().write_all(bytes)),
    }
}

/// Waits until everything is out, at most so long.
pub fn flush(within: Duration) {
    let Some(Some(writer)) = WRITER.get() else {
        return;
    };
    let (marked, out) = sync_channel(1);
    if writer.try_send(Piece::Mark(marked)).is_ok() {
        out.recv_timeout(within).ok();
    }
}

fn start() -> Option<SyncSender<Piece>> {
    let is_file = fstat(io::stderr().as_fd()).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
    });
    if is_file {
        return None;
    }
    let (writer, pieces) = sync_channel(BACKLOG);
    let thread = thread::Builder::new().name("stderr".to_owned());
    thread.spawn(move || write_all(&pieces)).ok()?;
    Some(writer)
}

fn write_all(pieces: &Receiver<Piece>) {
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => drop(io::stderr().write_all(&bytes)),
            Piece::Mark(marked) => drop(marked.try_send(())),
        }
    }
}
