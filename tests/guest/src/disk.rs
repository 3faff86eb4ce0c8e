//! Writes numbered, synchronous records to the disks, and tells a client which were acknowledged.
//!
//! Where a record goes is told by its number ([`block_of`]). A number is reported once the write has
//! returned, so it stands for all before it. After a migration every block must hold the last
//! acknowledged record that belongs there, or the one that was being written.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::record::{Record, SIZE, block_of};

/// `O_DSYNC` on x86: a write returns when the data is on the disk.
const O_DSYNC: i32 = 0o10000;
/// How often the acknowledged numbers are reported, if they have changed.
const REPORT: Duration = Duration::from_millis(5);
/// How often they are reported if not: a report may have got lost.
const REPEAT: Duration = Duration::from_millis(200);

/// What the writer of one drive is to do, and what it has done.
#[derive(Debug, Default)]
struct Drive {
    /// Records per second; 0 stops.
    rate: AtomicU64,
    blocks: AtomicU64,
    /// Records acknowledged so far: numbers 1 up to this one.
    acknowledged: AtomicU64,
    started: AtomicBool,
    /// Whether the writer may be in a write.
    active: AtomicBool,
    longest: Mutex<Longest>,
    error: Mutex<Option<String>>,
}

/// The write that took longest, by the guest's clock, which stands still while the VM is stopped.
#[derive(Debug, Default)]
struct Longest {
    took: Duration,
    number: u64,
}

#[derive(Debug, Default)]
struct Shared {
    drives: [Drive; 8],
    client: Mutex<Option<SocketAddr>>,
}

/// The writers, one thread per drive, and the thread that reports.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Shared>);

impl Disk {
    /// Writes `rate` records a second to each of the first `drives` drives from now on, over their
    /// first `blocks` blocks. 0 stops all.
    pub(crate) fn set(&self, rate: u64, blocks: u64, drives: u64) {
        for (index, drive) in (0..).zip(&self.0.drives) {
            let rate = if index < drives { rate } else { 0 };
            if rate > 0 {
                drive.blocks.store(blocks.max(1), SeqCst);
            }
            drive.rate.store(rate, SeqCst);
            if rate > 0 && !drive.started.swap(true, SeqCst) {
                let shared = Arc::clone(&self.0);
                thread::spawn(move || run(&shared, index));
            }
        }
    }

    /// Reports to this client from now on.
    pub(crate) fn report_to(&self, client: SocketAddr) {
        let before = lock(&self.0.client).replace(client);
        if before.is_none() {
            let shared = Arc::clone(&self.0);
            // Without a socket there are no reports, and a test that needs them says so.
            thread::spawn(move || drop(report(&shared)));
        }
    }

    pub(crate) fn status(&self) -> String {
        let mut words = Vec::new();
        for (index, drive) in self.0.drives.iter().enumerate() {
            if !drive.started.load(SeqCst) {
                continue;
            }
            // First: a writer that is no longer active has counted all that it wrote.
            let active = u8::from(drive.active.load(SeqCst));
            let acknowledged = drive.acknowledged.load(SeqCst);
            let longest = lock(&drive.longest);
            words.push(format!(
                "active{index}={active} acknowledged{index}={acknowledged} \
                 longest_us{index}={} longest_at{index}={}",
                longest.took.as_micros(),
                longest.number
            ));
            if let Some(error) = &*lock(&drive.error) {
                words.push(format!("error{index}={}", error.replace(' ', "_")));
            }
        }
        words.join(" ")
    }
}

fn run(shared: &Shared, index: u64) {
    let Some(drive) = usize::try_from(index)
        .ok()
        .and_then(|at| shared.drives.get(at))
    else {
        return;
    };
    loop {
        drive.active.store(true, SeqCst);
        if let Err(err) = write_records(drive, index) {
            *lock(&drive.error) = Some(err.to_string());
            drive.rate.store(0, SeqCst);
        }
        drive.active.store(false, SeqCst);
        thread::sleep(Duration::from_millis(10));
    }
}

fn open(index: u64) -> io::Result<File> {
    let letter = (b'a'..=b'z').nth(usize::try_from(index).unwrap_or(usize::MAX));
    let name = letter.map_or_else(String::new, |letter| char::from(letter).to_string());
    OpenOptions::new()
        .write(true)
        .custom_flags(O_DSYNC)
        .open(format!("/dev/vd{name}"))
}

fn write_records(drive: &Drive, index: u64) -> io::Result<()> {
    if drive.rate.load(SeqCst) == 0 {
        return Ok(());
    }
    let device = open(index)?;
    let mut bytes = vec![0; SIZE];
    let mut next = Instant::now();
    loop {
        let rate = drive.rate.load(SeqCst);
        if rate == 0 {
            return Ok(());
        }
        let number = drive.acknowledged.load(SeqCst) + 1;
        let block = block_of(number, drive.blocks.load(SeqCst));
        let record = Record {
            drive: index,
            number,
            block,
        };
        record.write_to(&mut bytes);
        let began = Instant::now();
        device.write_all_at(&bytes, block * SIZE as u64)?;
        let took = began.elapsed();
        drive.acknowledged.store(number, SeqCst);
        let mut longest = lock(&drive.longest);
        if took > longest.took {
            *longest = Longest { took, number };
        }
        drop(longest);
        next += Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX);
        match next.checked_duration_since(Instant::now()) {
            Some(wait) => thread::sleep(wait),
            None => next = Instant::now(),
        }
    }
}

/// Sends the acknowledged number of every drive, again and again.
fn report(shared: &Shared) -> io::Result<()> {
    let socket = UdpSocket::bind(("::", 0))?;
    let mut told = [0; 8];
    let mut told_at = Instant::now();
    loop {
        let mut now = [0; 8];
        for (number, drive) in now.iter_mut().zip(&shared.drives) {
            *number = drive.acknowledged.load(SeqCst);
        }
        let client = *lock(&shared.client);
        if (now != told || told_at.elapsed() >= REPEAT)
            && let Some(client) = client
        {
            let datagram: Vec<u8> = now.iter().flat_map(|number| number.to_be_bytes()).collect();
            // An error is an ICMP report about an earlier one; the next report says it all.
            drop(socket.send_to(&datagram, client));
            (told, told_at) = (now, Instant::now());
        }
        thread::sleep(REPORT);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
