//! The command itself.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::time::Instant;

use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::error::TraceError;
use super::hooks::HookWatch;
use super::packet::Namer;
use super::record::{Lost, LostCounts, PlaceTotal, Record, Start, Summary};
use super::{reasons, text, wall_clock};
use crate::config::TraceConfig;
use crate::deadline;
use crate::ebpf::{DropTrace, LostEvents, Symbols};

/// Version of the records.
const SCHEMA: u32 = 1;

/// Events that are told before anything else is looked at.
const BATCH: usize = 1024;

/// Traces until `stop`, or the end that the configuration sets, and writes what it sees to `out`.
///
/// # Errors
/// The kernel can't be asked, or `out` takes nothing more. A reader that is gone is an end, not an error.
pub async fn run(
    config: &TraceConfig,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> Result<(), TraceError> {
    let trace = DropTrace::start(&config.vm_ips).map_err(TraceError::Start)?;
    let mut session = Session::new(config, trace, out);
    match session.run(stop).await {
        Err(error) if error.nobody_reads() => Ok(()),
        result => result,
    }
}

struct Session<'a, W> {
    config: &'a TraceConfig,
    trace: DropTrace,
    out: &'a mut W,
    namer: Namer,
    hooks: HookWatch,
    started: Instant,
    /// Events that were told.
    events: u64,
    /// The packets in them.
    told: u64,
    /// The packets in all events that were taken out of the ring, told or not.
    taken: u64,
    lost: LostCounts,
}

impl<'a, W: Write> Session<'a, W> {
    fn new(config: &'a TraceConfig, trace: DropTrace, out: &'a mut W) -> Self {
        Self {
            config,
            trace,
            out,
            namer: Namer::default(),
            hooks: HookWatch::default(),
            started: Instant::now(),
            events: 0,
            told: 0,
            taken: 0,
            lost: LostCounts::default(),
        }
    }

    async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<(), TraceError> {
        self.tell(&Record::Start(Start {
            schema: SCHEMA,
            time: wall_clock::now(),
            vm_ips: self.config.vm_ips.clone(),
            symbols: Symbols::are_shown(),
        }))?;
        self.flush()?;
        self.watch(stop).await?;
        self.trace.stop()?;
        self.settle().await?;
        self.look_at_hooks()?;
        let summary = self.summary()?;
        self.tell(&Record::Summary(summary))?;
        self.flush()
    }

    /// Tells what happens until it is time to end.
    async fn watch(&mut self, stop: impl Future<Output = ()>) -> Result<(), TraceError> {
        let ring = self.trace.readiness().map_err(TraceError::Wait)?;
        let mut looks = interval(deadline::TRACE_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ends = self.config.duration.map(|duration| self.started + duration);
        let end = async {
            match ends {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(stop, end);
        while !self.told_enough() {
            tokio::select! {
                // An end that was asked for comes before what there is to tell.
                biased;
                () = &mut stop => break,
                () = &mut end => break,
                _ = looks.tick() => {
                    self.look_at_hooks()?;
                    self.look_at_losses()?;
                    self.drain(BATCH)?;
                }
                ready = ring.readable() => {
                    let mut ready = ready.map_err(TraceError::Wait)?;
                    if !self.drain(BATCH)? {
                        ready.clear_ready();
                    }
                }
            }
            self.flush()?;
        }
        Ok(())
    }

    fn told_enough(&self) -> bool {
        self.config.count.is_some_and(|count| self.events >= count)
    }

    /// Takes events out of the ring; whether there may be more.
    fn drain(&mut self, most: usize) -> Result<bool, TraceError> {
        for _ in 0..most {
            let Some(mut packet) = self.trace.take() else {
                return Ok(false);
            };
            self.taken += packet.drop.packets;
            self.namer.name_function(&mut packet.drop);
            if packet.drop.is_no_loss() || self.told_enough() {
                continue;
            }
            self.events += 1;
            self.told += packet.drop.packets;
            let dropped = self.namer.dropped(&packet);
            self.tell(&Record::Drop(Box::new(dropped)))?;
        }
        Ok(true)
    }

    /// The program is off, but may still be at work on another CPU: waits until what was taken and what was
    /// lost make up the totals.
    async fn settle(&mut self) -> Result<(), TraceError> {
        let deadline = Instant::now() + deadline::TRACE_SETTLE;
        loop {
            while self.drain(BATCH)? {}
            let counted: u64 = self.trace.totals()?.iter().map(|drop| drop.packets).sum();
            let lost = self.trace.lost()?;
            // What is not in the totals may have been told, or not.
            let settled = self.taken + lost.untold >= counted;
            if settled || Instant::now() >= deadline {
                return Ok(());
            }
            sleep(deadline::TRACE_SETTLE / 20).await;
        }
    }

    fn look_at_hooks(&mut self) -> Result<(), TraceError> {
        let changed = self.hooks.look(&self.config.vm_ips, &wall_clock::now())?;
        for hooks in changed {
            self.tell(&Record::Hooks(hooks))?;
        }
        Ok(())
    }

    /// Says so when drops were not told, each time there are more.
    fn look_at_losses(&mut self) -> Result<(), TraceError> {
        let counts = counts(self.trace.lost()?);
        let before = std::mem::replace(&mut self.lost, counts);
        let more = counts.untold > before.untold || counts.uncounted > before.uncounted;
        if more {
            self.tell(&Record::Lost(Lost {
                time: wall_clock::now(),
                counts,
            }))?;
        }
        Ok(())
    }

    fn summary(&mut self) -> Result<Summary, TraceError> {
        let mut reasons_seen = BTreeMap::new();
        let mut places: Vec<PlaceTotal> = Vec::new();
        let (mut packets, mut no_loss) = (0, 0);
        for mut drop in self.trace.totals()? {
            self.namer.name_function(&mut drop);
            if drop.is_no_loss() {
                no_loss += drop.packets;
                continue;
            }
            packets += drop.packets;
            *reasons_seen.entry(drop.reason.clone()).or_default() += drop.packets;
            places.push(PlaceTotal {
                place: self.namer.place(&drop),
                meaning: reasons::known(&drop.reason).map(|known| known.meaning),
                packets: drop.packets,
            });
        }
        Ok(Summary {
            time: wall_clock::now(),
            duration_s: self.started.elapsed().as_secs_f64(),
            packets,
            reasons: reasons_seen,
            places,
            no_loss,
            told: self.told,
            lost: counts(self.trace.lost()?),
        })
    }

    fn tell(&mut self, record: &Record) -> Result<(), TraceError> {
        let line = if self.config.json {
            let mut line =
                serde_json::to_string(record).map_err(|error| TraceError::Write(error.into()))?;
            line.push('\n');
            line
        } else {
            text::render(record)
        };
        self.out
            .write_all(line.as_bytes())
            .map_err(TraceError::Write)
    }

    fn flush(&mut self) -> Result<(), TraceError> {
        self.out.flush().map_err(TraceError::Write)
    }
}

fn counts(lost: LostEvents) -> LostCounts {
    LostCounts {
        untold: lost.untold,
        uncounted: lost.uncounted,
        missed: lost.missed,
    }
}
