//! One long TCP connection through the guest's echo, every byte checked.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::now_ns;
use crate::lab::Netns;

const CHUNK: usize = 16384;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// After the writer has ended, how long the reader waits for each next byte.
const SILENCE: Duration = Duration::from_secs(5);

/// What to send.
#[derive(Debug, Clone)]
pub struct TcpLoad {
    /// An echo server.
    pub target: SocketAddr,
    /// Where the pseudo-random bytes start from.
    pub seed: u64,
    /// Bytes per second, or as fast as the guest echoes.
    pub bytes_per_second: Option<u64>,
}

impl TcpLoad {
    /// `bytes_per_second` to the guest's echo at `address`.
    #[must_use]
    pub fn new(address: impl Into<IpAddr>, bytes_per_second: Option<u64>) -> Self {
        let target = SocketAddr::new(address.into(), crate::lab::ECHO_PORT);
        Self {
            target,
            seed: now_ns(),
            bytes_per_second,
        }
    }
}

/// The account of one connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TcpResult {
    /// Bytes written.
    pub sent_bytes: u64,
    /// Bytes that came back, right or wrong.
    pub echoed_bytes: u64,
    /// Bytes that came back wrong.
    pub wrong_bytes: u64,
    /// The longest time between two reads that brought something, in ms.
    pub longest_stall_ms: f64,
    /// When that stall began, in ns since the epoch.
    pub longest_stall_at_ns: u64,
    /// Why the connection ended early, if it did.
    pub broken: Option<String>,
    /// Everything came back, right, and the connection ended when we ended it.
    pub intact: bool,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    writer_done: AtomicBool,
    sent: AtomicU64,
    echoed: AtomicU64,
}

/// A connection at work.
#[derive(Debug)]
pub struct TcpTraffic {
    progress: Arc<Progress>,
    writer: Option<JoinHandle<Option<String>>>,
    reader: Option<JoinHandle<TcpResult>>,
}

impl TcpTraffic {
    /// Connects from `netns` and starts sending.
    ///
    /// # Errors
    ///
    /// When the connection can't be made in 10 s.
    pub fn start(netns: &Netns, load: TcpLoad) -> Result<Self> {
        let stream = netns.run(|| TcpStream::connect_timeout(&load.target, CONNECT_DEADLINE))?;
        let stream = stream.with_context(|| format!("connect to {}", load.target))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .context("set a timeout")?;
        stream
            .set_write_timeout(Some(Duration::from_millis(100)))
            .context("set a timeout")?;
        let progress = Arc::new(Progress::default());
        let to_read = stream.try_clone().context("clone the connection")?;
        let seed = load.seed;
        let writer = {
            let progress = Arc::clone(&progress);
            thread::spawn(move || {
                let broken = write(stream, &load, &progress)
                    .err()
                    .map(|err| err.to_string());
                progress.writer_done.store(true, Relaxed);
                broken
            })
        };
        let reader = {
            let progress = Arc::clone(&progress);
            thread::spawn(move || read(to_read, seed, &progress))
        };
        Ok(Self {
            progress,
            writer: Some(writer),
            reader: Some(reader),
        })
    }

    /// Bytes that have come back so far.
    #[must_use]
    pub fn echoed(&self) -> u64 {
        self.progress.echoed.load(Relaxed)
    }

    /// Ends the sending side, reads what is still to come, and settles.
    ///
    /// # Errors
    ///
    /// When one of the threads panicked; a broken connection is a result, not an error.
    pub fn stop(mut self) -> Result<TcpResult> {
        self.progress.stop.store(true, Relaxed);
        let panicked = |_| anyhow!("a traffic thread panicked");
        let taken = "a handle is only taken by stop(), which consumes the traffic";
        let broken = self.writer.take().expect(taken).join().map_err(panicked)?;
        let mut result = self.reader.take().expect(taken).join().map_err(panicked)?;
        result.sent_bytes = self.progress.sent.load(Relaxed);
        result.broken = broken.or(result.broken);
        result.intact = result.broken.is_none()
            && result.wrong_bytes == 0
            && result.sent_bytes > 0
            && result.echoed_bytes == result.sent_bytes;
        Ok(result)
    }
}

impl Drop for TcpTraffic {
    fn drop(&mut self) {
        self.progress.stop.store(true, Relaxed);
    }
}

fn write(mut stream: TcpStream, load: &TcpLoad, progress: &Progress) -> std::io::Result<()> {
    let started = Instant::now();
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0_u64;
    while !progress.stop.load(Relaxed) {
        // Small pieces at low rates: at least twenty a second.
        let length = match load.bytes_per_second {
            Some(rate) => usize::try_from(rate / 20).unwrap_or(CHUNK).clamp(1, CHUNK),
            None => CHUNK,
        };
        if let Some(rate) = load.bytes_per_second {
            let due = started + Duration::from_secs_f64(sent as f64 / rate.max(1) as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        fill(&mut chunk[..length], load.seed, sent);
        let mut rest = &chunk[..length];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(length) => {
                    rest = &rest[length..];
                    sent += length as u64;
                    progress.sent.store(sent, Relaxed);
                }
                Err(err) if is_timeout(&err) => {
                    if progress.stop.load(Relaxed) {
                        break;
                    }
                }
                Err(err) => return Err(err),
            }
        }
    }
    // N.B. The reader has to know first: the guest may have closed its side before this thread runs again.
    progress.writer_done.store(true, Relaxed);
    stream.shutdown(Shutdown::Write)
}

fn read(mut stream: TcpStream, seed: u64, progress: &Progress) -> TcpResult {
    let mut result = TcpResult::default();
    let mut buffer = vec![0; 65536];
    let mut expected = vec![0; buffer.len()];
    let mut last = Instant::now();
    let mut last_ns = now_ns();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                if !progress.writer_done.load(Relaxed) {
                    result.broken = Some("the guest closed the connection".to_owned());
                }
                return result;
            }
            Ok(length) => {
                let stall_ms = last.elapsed().as_secs_f64() * 1e3;
                if result.echoed_bytes > 0 && stall_ms > result.longest_stall_ms {
                    (result.longest_stall_ms, result.longest_stall_at_ns) = (stall_ms, last_ns);
                }
                (last, last_ns) = (Instant::now(), now_ns());
                fill(&mut expected[..length], seed, result.echoed_bytes);
                let pairs = buffer[..length].iter().zip(&expected);
                result.wrong_bytes += pairs.filter(|(got, wanted)| got != wanted).count() as u64;
                result.echoed_bytes += length as u64;
                progress.echoed.store(result.echoed_bytes, Relaxed);
            }
            Err(err) if is_timeout(&err) => {
                if progress.writer_done.load(Relaxed) && last.elapsed() >= SILENCE {
                    result.broken = Some(format!("nothing came back for {SILENCE:?}"));
                    return result;
                }
            }
            Err(err) => {
                result.broken = Some(err.to_string());
                return result;
            }
        }
    }
}

fn is_timeout(err: &std::io::Error) -> bool {
    matches!(
        err.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// The bytes of the stream from `offset` on: each depends on the seed and its place alone.
fn fill(bytes: &mut [u8], seed: u64, offset: u64) {
    let mut word = [0; 8];
    for (at, byte) in (offset..).zip(bytes.iter_mut()) {
        let place = usize::try_from(at % 8).expect("less than 8");
        if place == 0 || at == offset {
            word = mix(seed.wrapping_add(at / 8)).to_le_bytes();
        }
        *byte = word[place];
    }
}

/// splitmix64's output function.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_where_it_is_cut() {
        let mut whole = [0; 64];
        fill(&mut whole, 7, 0);
        let mut tail = [0; 51];
        fill(&mut tail, 7, 13);
        assert_eq!(whole[13..], tail);
    }
}
