//! What V's disks acknowledged, as a client hears of it: the last number per drive, and when it grew.
//!
//! The guest reports after the fact and reports are UDP, so a client knows of a record some
//! milliseconds late, but never of one that was not acknowledged.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::silence::Silence;
use super::udp::receive_one;
use crate::lab::Netns;

/// What one drive acknowledged: each number that the client heard of, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AckRecord {
    /// Ever higher numbers with the time of arrival, in ns since the epoch.
    pub heard: Vec<(u64, u64)>,
}

impl AckRecord {
    /// The last record that is known to be acknowledged, 0 if none is.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.heard.last().map_or(0, |(number, _)| *number)
    }

    /// The longest time without progress of which at least a part lies between two moments, in ns
    /// since the epoch. What has not ended by `to_ns` counts until then.
    #[must_use]
    pub fn longest_stall(&self, from_ns: u64, to_ns: u64) -> Option<Silence> {
        let times = self.heard.iter().map(|(_, at_ns)| *at_ns);
        let ends = times.clone().skip(1).chain([to_ns]);
        times
            .zip(ends)
            .map(|(began_ns, ended_ns)| Silence { began_ns, ended_ns })
            .filter(|stall| {
                stall.ended_ns > stall.began_ns
                    && stall.ended_ns >= from_ns
                    && stall.began_ns <= to_ns
            })
            .max_by_key(|stall| stall.ended_ns - stall.began_ns)
    }

    /// Records per second between two moments, in ns since the epoch.
    #[must_use]
    pub fn rate(&self, from_ns: u64, to_ns: u64) -> Option<f64> {
        let mut within = self
            .heard
            .iter()
            .filter(|(_, at_ns)| (from_ns..=to_ns).contains(at_ns));
        let ((first, began_ns), (last, ended_ns)) = (within.next()?, within.next_back()?);
        Some((last - first) as f64 * 1e9 / (ended_ns - began_ns).max(1) as f64)
    }

    fn hear(&mut self, number: u64, at_ns: u64) {
        // Reports may overtake each other.
        if number > self.last() {
            self.heard.push((number, at_ns));
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    drives: Mutex<Vec<AckRecord>>,
}

/// A client that listens to V's reports.
#[derive(Debug)]
pub struct AckCollector {
    port: u16,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<Result<()>>>,
}

impl AckCollector {
    /// Listens in `netns` for reports about so many drives.
    ///
    /// # Errors
    ///
    /// When no socket can be had there.
    pub fn start(netns: &Netns, drives: usize) -> Result<Self> {
        // A socket belongs to the namespace it was made in, whoever uses it.
        let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", 0)))?;
        let socket = socket.context("open a UDP socket")?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("set SO_TIMESTAMPNS")?;
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("set SO_RCVTIMEO")?;
        let port = socket.local_addr().context("ask for the port")?.port();
        let shared = Arc::new(Shared {
            drives: Mutex::new(vec![AckRecord::default(); drives]),
            ..Shared::default()
        });
        let for_thread = Arc::clone(&shared);
        let listener = thread::spawn(move || listen(&socket, &for_thread));
        Ok(Self {
            port,
            shared,
            listener: Some(listener),
        })
    }

    /// Where the guest is to send its reports.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The last number of each drive so far.
    #[must_use]
    pub fn last(&self) -> Vec<u64> {
        lock(&self.shared.drives)
            .iter()
            .map(AckRecord::last)
            .collect()
    }

    /// Waits until every drive has acknowledged `count` more records.
    ///
    /// # Errors
    ///
    /// When one has not at the deadline.
    pub fn wait_for_more(&self, count: u64, deadline: Instant) -> Result<()> {
        let before = self.last();
        loop {
            let now = self.last();
            if now
                .iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + count)
            {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("the disks went from record {before:?} to {now:?} only, not {count} further");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What was heard of each drive.
    ///
    /// # Errors
    ///
    /// When the socket failed on the way.
    pub fn stop(mut self) -> Result<Vec<AckRecord>> {
        self.shared.stop.store(true, Relaxed);
        if let Some(listener) = self.listener.take() {
            match listener.join() {
                Ok(result) => result?,
                Err(_) => bail!("the listener panicked"),
            }
        }
        Ok(std::mem::take(&mut *lock(&self.shared.drives)))
    }
}

impl Drop for AckCollector {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

fn listen(socket: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut buffer = [0; 256];
    let mut space = nix::cmsg_space!(libc::timespec);
    while !shared.stop.load(Relaxed) {
        let Some((length, at_ns)) = receive_one(socket, &mut buffer, &mut space)? else {
            continue;
        };
        let (numbers, _) = buffer[..length].as_chunks::<8>();
        for (drive, number) in lock(&shared.drives).iter_mut().zip(numbers) {
            drive.hear(u64::from_be_bytes(*number), at_ns);
        }
    }
    Ok(())
}

fn lock(drives: &Mutex<Vec<AckRecord>>) -> MutexGuard<'_, Vec<AckRecord>> {
    drives.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(heard: &[(u64, u64)]) -> AckRecord {
        let mut record = AckRecord::default();
        for (number, at_ns) in heard {
            record.hear(*number, *at_ns);
        }
        record
    }

    #[test]
    fn a_report_that_comes_late_takes_nothing_back() {
        assert_eq!(record(&[(3, 10), (9, 20), (5, 30)]).last(), 9);
    }

    #[test]
    fn a_stall_lasts_from_one_acknowledgement_to_the_next() {
        let record = record(&[(1, 10), (2, 20), (3, 90), (4, 95)]);
        let stall = record.longest_stall(0, 100).unwrap();
        assert_eq!((stall.began_ns, stall.ended_ns), (20, 90));
    }

    #[test]
    fn a_stall_that_does_not_end_lasts_until_the_end() {
        let record = record(&[(1, 10), (2, 20)]);
        let stall = record.longest_stall(0, 100).unwrap();
        assert_eq!((stall.began_ns, stall.ended_ns), (20, 100));
    }

    #[test]
    fn the_rate_is_that_of_the_time_asked_for() {
        let second = 1_000_000_000;
        let record = record(&[(1, 0), (100, second), (300, 2 * second), (301, 9 * second)]);
        assert_eq!(record.rate(second, 2 * second), Some(200.0));
    }
}
