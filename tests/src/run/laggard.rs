//! A guest that is behind with its packets: its QEMU is halted whenever too few of them wait in its tap.
//!
//! How many do is what the client has sent less what has been read from the tap. Packets that go elsewhere count as if they waited, so
//! from then on the guest runs as fast as it can.
//!
//! A node asks V for its Ethernet address now and then, and drops its packets when the answer takes seconds. That would be the same without
//! any migration, so it is kept from asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::stage::Stage;
use crate::lab::{GUEST_MAC, GUEST_V4, GUEST_V6, Netns, Node};
use crate::traffic::Sent;

/// Between two looks at how far behind it is.
const LOOK: Duration = Duration::from_millis(2);
/// A QEMU that is asked something must come to answer it.
const LONGEST_HALT: Duration = Duration::from_millis(200);
const BEHIND_DEADLINE: Duration = Duration::from_secs(30);

/// Keeps V on A behind, as long as this lives.
#[derive(Debug)]
pub struct Laggard {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Laggard {
    /// Begins, and waits until so many packets wait in V's tap, which is in A's own namespace.
    ///
    /// # Errors
    ///
    /// When no UDP is sent, or V does not get behind in half a minute.
    pub fn hold(stage: &mut Stage, packets: u32) -> Result<Self> {
        let client = stage.client.as_ref().context("the traffic is on")?;
        let sent = client.sent().context("UDP is sent")?;
        let group = Pid::from_raw(i32::try_from(stage.guest_a.process().pid())?);
        let netns = stage.lab.network().guest_netns(Node::A).clone();
        let tap = stage.lab.config().wiring.tap();
        netns.ip(&format!(
            "neigh replace {GUEST_V4} lladdr {GUEST_MAC} dev {tap} nud permanent
             neigh replace {GUEST_V6} lladdr {GUEST_MAC} dev {tap} nud permanent"
        ))?;
        let end = Arc::new(AtomicBool::new(false));
        let waiting = Arc::new(AtomicI64::new(0));
        let thread = {
            let (end, waiting) = (Arc::clone(&end), Arc::clone(&waiting));
            thread::spawn(move || {
                keep_behind(group, &netns, tap, &sent, packets.into(), &end, &waiting)
            })
        };
        let mut laggard = Self {
            end,
            thread: Some(thread),
        };
        let deadline = Instant::now() + BEHIND_DEADLINE;
        while waiting.load(Relaxed) < packets.into() {
            if laggard.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                laggard.join()?;
            }
            let waiting = waiting.load(Relaxed);
            ensure!(
                Instant::now() < deadline,
                "only {waiting} packets wait for V"
            );
            thread::sleep(LOOK);
        }
        Ok(laggard)
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Ok(()),
        }
    }
}

impl Drop for Laggard {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        // It has let QEMU go on before it ends.
        self.join().ok();
    }
}

fn keep_behind(
    group: Pid,
    netns: &Netns,
    tap: &str,
    sent: &Sent,
    packets: i64,
    end: &AtomicBool,
    waiting: &AtomicI64,
) -> Result<()> {
    netns.enter()?;
    let read = || read_from(tap);
    // V is not behind yet.
    let base = sent.count() - read()?;
    let look = || -> Result<bool> {
        thread::sleep(LOOK);
        let now = sent.count() - base - read()?;
        waiting.store(now, Relaxed);
        Ok(now < packets && !end.load(Relaxed))
    };
    while !end.load(Relaxed) {
        if !look()? {
            continue;
        }
        // It may be gone: then there is nobody to keep.
        killpg(group, Signal::SIGSTOP).ok();
        let until = Instant::now() + LONGEST_HALT;
        let result = loop {
            match look() {
                Ok(true) if Instant::now() < until => {}
                other => break other,
            }
        };
        killpg(group, Signal::SIGCONT).ok();
        result?;
    }
    Ok(())
}

/// How many packets have been read from a tap of this thread's namespace.
fn read_from(tap: &str) -> Result<i64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").context("read the devices")?;
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(tap)?.strip_prefix(':'))
        .with_context(|| format!("no {tap}"))?;
    // Eight counters of what came in, then those of what went out.
    let packets = line.split_whitespace().nth(9).context("a counter")?;
    packets.parse().context("read a counter")
}
