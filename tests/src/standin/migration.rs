//! The stream: RAM in passes, then what is left, the guest's state and a checksum, with the VM stopped.
//!
//! | record | bytes |
//! |---|---|
//! | page of zeros | 0, number (4) |
//! | page | 1, number (4), content (4096) |
//! | end | 2, length (4), JSON |
//! | end of a pass | 3 |

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::echo::Guest;
use super::machine::{Machine, Migration, STOP_WHEN_HELD};
use super::ram::PAGE;
use super::socket::Listener;

const ZEROS: u8 = 0;
const CONTENT: u8 = 1;
const END: u8 = 2;
/// Also of an empty one: a stream that is broken is noticed.
const PASSED: u8 = 3;
/// QEMU's own (`IO_BUF_SIZE`, migration/qemu-file.c).
const BUFFER: usize = 32 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Device {
    guest: Guest,
    checksum: u64,
}

/// `migrate`: sends in a thread.
pub(super) fn send(machine: &Arc<Machine>, stream: UnixStream) -> Result<()> {
    stream
        .set_nonblocking(false)
        .context("let the stream block")?;
    {
        let mut state = machine.lock();
        state.migration = Migration {
            stream: Some(stream.try_clone().context("clone the stream")?),
            ..Migration::default()
        };
        state.ram.forget_what_was_sent();
        machine.set_migration(&mut state, "setup");
    }
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        let ran = machine.lock().running();
        let result = send_all(&machine, &stream);
        // The destination must see an end, whatever came of it.
        stream.shutdown(Shutdown::Both).ok();
        if let Err(error) = result {
            give_up(&machine, ran, &format!("{error:#}"));
        }
    });
    Ok(())
}

fn send_all(machine: &Machine, stream: &UnixStream) -> Result<()> {
    let out = Outgoing {
        machine,
        stream,
        main_loop: None,
    };
    let mut out = BufWriter::with_capacity(BUFFER, out);
    machine.set_migration(&mut machine.lock(), "active");
    let began = Instant::now();
    loop {
        send_pass(machine, &mut out)?;
        if out.get_ref().main_loop.is_some() {
            break;
        }
        let mut state = machine.lock();
        let pending = state.ram.dirty_pages().count() * PAGE;
        state.migration.remaining = pending as u64;
        let assumed = state.parameter("avail-switchover-bandwidth");
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let measured = state.migration.transferred * 1000 / milliseconds.max(1);
        let bandwidth = if assumed > 0 { assumed } else { measured };
        // Nobody acknowledges; a VM that is stopped needs none to.
        let may = !state.capability("switchover-ack") || !state.running();
        if may && pending as u64 <= bandwidth * state.parameter("downtime-limit") / 1000 {
            break;
        }
    }
    complete(machine, &mut out)
}

/// The stream, and what it takes with it when the VM is stopped for it.
struct Outgoing<'a> {
    machine: &'a Machine,
    stream: &'a UnixStream,
    /// Held from the stop on.
    main_loop: Option<MutexGuard<'a, ()>>,
}

impl Outgoing<'_> {
    /// The VM does not run any more, and nothing else goes on.
    fn stop(&mut self) {
        let machine = self.machine;
        self.main_loop.get_or_insert_with(|| machine.main_loop());
        machine.stop(&mut machine.lock(), "finish-migrate");
    }

    /// Whether nobody has taken anything for as long as it takes to have the VM stopped.
    fn is_held(&self) -> io::Result<bool> {
        let limit = self.machine.lock().parameter(STOP_WHEN_HELD);
        if limit == 0 || self.main_loop.is_some() {
            return Ok(false);
        }
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        let limit = PollTimeout::try_from(limit).map_err(io::Error::other)?;
        Ok(poll(&mut fds, limit)? == 0)
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_held()? {
            self.stop();
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn send_pass(machine: &Machine, out: &mut impl Write) -> Result<()> {
    let pages = {
        let mut state = machine.lock();
        let pages = state.ram.take_dirty();
        state.migration.syncs += 1;
        state.migration.remaining = (pages.len() * PAGE) as u64;
        if state.capability("events") {
            machine.tell("MIGRATION_PASS", json!({"pass": state.migration.syncs}));
        }
        pages
    };
    for page in pages {
        let record = {
            let mut state = machine.lock();
            ensure!(!state.migration.cancelled, "cancelled");
            let record = record(page, state.ram.page(page))?;
            state.migration.remaining = state.migration.remaining.saturating_sub(PAGE as u64);
            state.migration.transferred += record.len() as u64;
            record
        };
        out.write_all(&record).context("send a page")?;
    }
    out.write_all(&[PASSED])
        .and_then(|()| out.flush())
        .context("send pages")
}

fn record(page: usize, content: Option<&[u8]>) -> Result<Vec<u8>> {
    let number = u32::try_from(page)
        .context("a page number fits 32 bits")?
        .to_le_bytes();
    Ok(match content {
        None => [&[ZEROS], &number[..]].concat(),
        Some(content) => [&[CONTENT], &number[..], content].concat(),
    })
}

/// Stops the VM, if nobody has, and sends what is left. As in `migration_completion()` (migration/migration.c), nothing else goes on until
/// that has been taken.
fn complete(machine: &Machine, out: &mut BufWriter<Outgoing<'_>>) -> Result<()> {
    let stopped = Instant::now();
    out.get_mut().stop();
    let mut state = machine.lock();
    if state.capability("pause-before-switchover") {
        machine.set_migration(&mut state, "pre-switchover");
        out.get_mut().main_loop = None;
        state = machine
            .changed
            .wait_while(state, |state| {
                !state.migration.go_on && !state.migration.cancelled
            })
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        out.get_mut().stop();
        state = machine.lock();
    }
    ensure!(!state.migration.cancelled, "cancelled");
    machine.set_migration(&mut state, "device");
    drop(state);
    send_pass(machine, out)?;
    let device = {
        let state = machine.lock();
        Device {
            guest: state.guest.clone(),
            checksum: state.ram.checksum(),
        }
    };
    let device = serde_json::to_vec(&device).context("write the guest's state")?;
    let length = u32::try_from(device.len())
        .context("a state is short")?
        .to_le_bytes();
    out.write_all(&[&[END], &length[..], &device].concat())
        .and_then(|()| out.flush())
        .context("send the guest's state")?;
    let mut state = machine.lock();
    ensure!(!state.migration.cancelled, "cancelled");
    let downtime = u64::try_from(stopped.elapsed().as_millis()).unwrap_or(u64::MAX);
    state.migration.downtime_ms = Some(downtime);
    state.migration.remaining = 0;
    state.migration.stream = None;
    state.run = "postmigrate";
    machine.set_migration(&mut state, "completed");
    Ok(())
}

/// The VM goes on here, if it ran until the migration stopped it.
fn give_up(machine: &Machine, ran: bool, error: &str) {
    let mut state = machine.lock();
    state.migration.stream = None;
    state.migration.error = Some(error.to_owned());
    let stopped_by_us = state.run == "finish-migrate";
    let status = if state.migration.cancelled {
        "cancelled"
    } else {
        "failed"
    };
    machine.set_migration(&mut state, status);
    if stopped_by_us && ran && machine.resume(&mut state).is_err() {
        state.run = "internal-error";
    }
}

/// `migrate_cancel`.
pub(super) fn cancel(machine: &Machine) {
    let mut state = machine.lock();
    let Some(stream) = state.migration.stream.take() else {
        return;
    };
    state.migration.cancelled = true;
    machine.set_migration(&mut state, "cancelling");
    // It may be full, with nobody to take anything out.
    stream.shutdown(Shutdown::Both).ok();
}

/// `migrate-incoming`: receives in a thread.
pub(super) fn receive(machine: &Arc<Machine>, listener: Listener) -> Result<()> {
    machine.set_migration(&mut machine.lock(), "setup");
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        let received = listener
            .accept()
            .and_then(|stream| receive_all(&machine, stream));
        if let Err(error) = received {
            let mut state = machine.lock();
            state.migration.error = Some(format!("{error:#}"));
            machine.set_migration(&mut state, "failed");
            // As QEMU does: what has arrived so far is of no use.
            std::process::exit(1);
        }
    });
    Ok(())
}

fn receive_all(machine: &Machine, stream: UnixStream) -> Result<()> {
    machine.set_migration(&mut machine.lock(), "active");
    let mut input = BufReader::with_capacity(BUFFER, stream);
    let mut page = vec![0; PAGE];
    let device = loop {
        match byte(&mut input)? {
            PASSED => {}
            ZEROS => drop(number(&mut input)?),
            CONTENT => {
                let at = number(&mut input)?;
                input.read_exact(&mut page).context("receive a page")?;
                let mut state = machine.lock();
                ensure!(at < state.ram.pages(), "page {at} is beyond the end");
                state.ram.write(at, &page);
            }
            END => {
                let mut device = vec![0; number(&mut input)?];
                input
                    .read_exact(&mut device)
                    .context("receive the guest's state")?;
                break serde_json::from_slice::<Device>(&device)
                    .context("read the guest's state")?;
            }
            other => bail!("a record of kind {other}"),
        }
    };
    let mut state = machine.lock();
    ensure!(
        state.ram.checksum() == device.checksum,
        "RAM differs from the source's"
    );
    state.guest = device.guest;
    state.run = "paused";
    machine.driver_is_up(&mut state)?;
    machine.set_migration(&mut state, "completed");
    if state.autostart {
        machine.resume(&mut state)?;
    }
    Ok(())
}

fn byte(input: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    input.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn number(input: &mut impl Read) -> Result<usize> {
    let mut number = [0; 4];
    input.read_exact(&mut number).context("receive a number")?;
    usize::try_from(u32::from_le_bytes(number)).context("a number fits")
}
