//! Dirties memory at a given rate, so that a migration has something to chase.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// How often the debt of pages is paid.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Wanted {
    megabytes_per_second: AtomicU64,
    mebibytes: AtomicU64,
    pages_dirtied: AtomicU64,
}

/// The one thread that writes to memory.
#[derive(Debug, Clone)]
pub(crate) struct Dirtier(Arc<Wanted>);

impl Dirtier {
    pub(crate) fn start() -> Self {
        let wanted = Arc::new(Wanted {
            megabytes_per_second: AtomicU64::new(0),
            mebibytes: AtomicU64::new(0),
            pages_dirtied: AtomicU64::new(0),
        });
        let shared = Arc::clone(&wanted);
        thread::spawn(move || run(&shared));
        Self(wanted)
    }

    /// Dirties `rate` MB/s in a buffer of `size` MiB from now on; 0 stops.
    pub(crate) fn set(&self, rate: u64, size: u64) {
        self.0.mebibytes.store(size, Relaxed);
        self.0.megabytes_per_second.store(rate, Relaxed);
    }

    pub(crate) fn pages_dirtied(&self) -> u64 {
        self.0.pages_dirtied.load(Relaxed)
    }
}

fn run(wanted: &Wanted) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut page = 0;
    let mut value = 0_u8;
    let mut paid = Instant::now();
    loop {
        let rate = wanted.megabytes_per_second.load(Relaxed);
        let mebibytes = wanted.mebibytes.load(Relaxed).max(1);
        let size = usize::try_from(mebibytes << 20).unwrap_or(1 << 20);
        if rate == 0 {
            buffer = Vec::new();
        } else if buffer.len() != size {
            buffer = vec![0; size];
        }
        let elapsed = paid.elapsed();
        paid = Instant::now();
        if rate > 0 {
            // After a pause (the migration itself) the debt is not paid in one go.
            let elapsed = elapsed.min(5 * TICK);
            let pages = rate * u64::from(elapsed.subsec_micros()) / PAGE as u64;
            for _ in 0..pages {
                page = (page + 1) % (size / PAGE);
                value = value.wrapping_add(1);
                buffer[page * PAGE] = value;
            }
            black_box(&buffer);
            wanted.pages_dirtied.fetch_add(pages, Relaxed);
        }
        thread::sleep(TICK);
    }
}
