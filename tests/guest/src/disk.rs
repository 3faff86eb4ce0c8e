//! Writes numbered, synchronous records to the first disk, and knows which were acknowledged.
//!
//! Record *n* fills the block at `n % blocks` with its number. After a migration, every block of
//! the destination's image must hold the last acknowledged number that belongs there, or a newer one.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/vda";
pub(crate) const BLOCK: usize = 4096;
/// `O_DSYNC` on x86: a write returns when the data is on the disk.
const O_DSYNC: i32 = 0o10000;

#[derive(Debug, Default)]
struct Shared {
    /// Records per second; 0 stops.
    rate: AtomicU64,
    blocks: AtomicU64,
    /// Records acknowledged so far: numbers 1 up to this one.
    acknowledged: AtomicU64,
    error: Mutex<Option<String>>,
}

/// The one thread that writes to the disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Arc<Shared>);

impl Disk {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || run(&for_thread));
        Self(shared)
    }

    /// Writes `rate` records a second over the first `blocks` blocks from now on.
    pub(crate) fn set(&self, rate: u64, blocks: u64) {
        if rate > 0 {
            self.0.blocks.store(blocks.max(1), Relaxed);
        }
        self.0.rate.store(rate, Relaxed);
    }

    pub(crate) fn status(&self) -> String {
        let error = self.0.error.lock().unwrap_or_else(PoisonError::into_inner);
        let acknowledged = self.0.acknowledged.load(Relaxed);
        match &*error {
            None => format!("acknowledged={acknowledged}"),
            Some(error) => format!("acknowledged={acknowledged} error={error}"),
        }
    }
}

fn run(shared: &Shared) {
    loop {
        if shared.rate.load(Relaxed) > 0
            && let Err(err) = write_records(shared)
        {
            *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(err.to_string());
            shared.rate.store(0, Relaxed);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn write_records(shared: &Shared) -> io::Result<()> {
    let device = OpenOptions::new()
        .write(true)
        .custom_flags(O_DSYNC)
        .open(DEVICE)?;
    let mut next = Instant::now();
    loop {
        let rate = shared.rate.load(Relaxed);
        if rate == 0 {
            return Ok(());
        }
        let number = shared.acknowledged.load(Relaxed) + 1;
        let block = number.to_le_bytes().repeat(BLOCK / 8);
        let at = number % shared.blocks.load(Relaxed);
        device.write_all_at(&block, at * BLOCK as u64)?;
        shared.acknowledged.store(number, Relaxed);
        next += Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX);
        match next.checked_duration_since(Instant::now()) {
            Some(wait) => thread::sleep(wait),
            None => next = Instant::now(),
        }
    }
}
