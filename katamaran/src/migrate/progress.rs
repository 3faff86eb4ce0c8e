//! What a person sees while it runs: on a terminal a bar for each drive and for the RAM, and a line per
//! phase, otherwise plain log lines, at most one a second.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::diary::Diary;
use super::report::PhaseTime;
use super::storage::DriveProgress;
use super::storage::job::Standing;
use super::terminal::Terminal;
use crate::journal::Record;
use crate::metrics::{self, Metrics};
use crate::session_id::SessionId;
use crate::wall_clock::now_us;

/// Bars for a terminal; hidden elsewhere.
#[must_use]
pub fn bars() -> MultiProgress {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::term_like(Box::new(Terminal::stderr()))
    } else {
        ProgressDrawTarget::hidden()
    };
    MultiProgress::with_draw_target(target)
}

/// Where progress is shown: to a person and to Prometheus.
#[derive(Debug, Clone)]
pub struct Outlets {
    pub bars: MultiProgress,
    pub metrics: Metrics,
}

const MIB: f64 = 1048576.0;

/// Times the phases and shows them.
#[derive(Debug)]
pub struct Progress {
    bars: MultiProgress,
    metrics: Metrics,
    diary: Diary,
    phases: Vec<PhaseTime>,
    current: Option<(&'static str, Instant)>,
    ram: Option<ProgressBar>,
    /// One per drive, in the order of the drives.
    disks: Vec<ProgressBar>,
    told_ready: bool,
    last_line: Instant,
}

/// Where the RAM copy stands.
#[derive(Debug, Clone, Copy)]
pub struct RamProgress {
    pub total: u64,
    pub remaining: u64,
    pub transferred: u64,
    pub pass: u64,
    /// Bytes per second, once measured.
    pub bandwidth: Option<f64>,
    /// Bytes per second.
    pub dirty_rate: Option<f64>,
    pub predicted: Duration,
    pub limit: Duration,
}

impl Progress {
    /// Nothing has begun yet.
    #[must_use]
    pub fn new(outlets: Outlets) -> Self {
        Self {
            bars: outlets.bars,
            metrics: outlets.metrics,
            diary: Diary::default(),
            phases: Vec::new(),
            current: None,
            ram: None,
            disks: Vec::new(),
            told_ready: false,
            last_line: Instant::now(),
        }
    }

    /// What Prometheus is told.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The migration begins: on the destination, a source has come.
    pub fn start(&self, session: SessionId) {
        self.metrics.begin(session);
    }

    /// From now on phases are also written into the journal.
    pub(crate) fn keep(&mut self, diary: Diary) {
        self.diary = diary;
        self.write_down(self.current());
    }

    fn write_down(&self, phase: &str) {
        let name = phase.to_owned();
        self.diary.mention(&Record::Phase { name });
    }

    /// Ends the phase that runs, if any, and begins another.
    pub fn begin(&mut self, name: &'static str) {
        self.end();
        self.metrics.phase(name);
        self.write_down(name);
        self.current = Some((name, Instant::now()));
        self.phases.push(PhaseTime {
            name: name.to_owned(),
            started_us: now_us(),
            duration_ms: 0.0,
        });
    }

    /// Ends the phase that runs.
    pub fn end(&mut self) {
        for bar in self.ram.take().into_iter().chain(self.disks.drain(..)) {
            bar.finish_and_clear();
        }
        let Some((name, began)) = self.current.take() else {
            return;
        };
        let duration_ms = began.elapsed().as_secs_f64() * 1000.0;
        if let Some(phase) = self.phases.last_mut() {
            phase.duration_ms = duration_ms;
        }
        tracing::info!(
            phase = name,
            ms = (duration_ms * 10.0).round() / 10.0,
            "done"
        );
    }

    /// The phases so far.
    #[must_use]
    pub fn phases(&self) -> &[PhaseTime] {
        &self.phases
    }

    /// The phase that runs now.
    #[must_use]
    pub fn current(&self) -> &'static str {
        self.current.map_or("-", |(name, _)| name)
    }

    /// Shows where the RAM copy stands.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown rounded"
    )]
    pub fn ram(&mut self, p: RamProgress) {
        // QEMU does not know its RAM in the first moments.
        if p.total == 0 {
            return;
        }
        self.metrics.ram(p.into());
        let done = p.total.saturating_sub(p.remaining);
        let detail = format!(
            "pass {}, {} MiB/s, guest dirties {} MiB/s, pause now {:.0} ms (limit {})",
            p.pass,
            mib(p.bandwidth, 0),
            mib(p.dirty_rate, 1),
            p.predicted.as_secs_f64() * 1000.0,
            p.limit.as_millis(),
        );
        if self.bars.is_hidden() {
            if self.last_line.elapsed() >= Duration::from_secs(1) {
                self.last_line = Instant::now();
                let eta = p
                    .bandwidth
                    .map(|b| (p.remaining as f64 / b).min(86_400.0) as u64);
                tracing::info!(
                    percent = (100 * done).checked_div(p.total).unwrap_or(0),
                    remaining_mib = (p.remaining as f64 / MIB) as u64,
                    eta_s = eta,
                    "RAM: {detail}"
                );
            }
            return;
        }
        let bar = self.ram.get_or_insert_with(|| {
            // Two lines: one would not fit a terminal of 80 columns.
            let style = ProgressStyle::with_template(
                "  RAM {wide_bar} {percent:>3} %  {bytes}/{total_bytes}  ETA {eta}\n      {msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bars.add(ProgressBar::new(p.total).with_style(style))
        });
        bar.set_length(p.total);
        bar.set_position(done);
        bar.set_message(detail);
    }

    /// Shows where the copy of each drive stands.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown rounded"
    )]
    pub fn disks(&mut self, drives: &[DriveProgress]) {
        for drive in drives {
            self.metrics.disk(&drive.job.drive, drive.into());
        }
        if self.bars.is_hidden() {
            let ready = drives.iter().all(|d| d.standing.is_ready());
            if drives.is_empty() || (!ready && self.last_line.elapsed() < Duration::from_secs(1)) {
                return;
            }
            // The end is told once.
            if ready && std::mem::replace(&mut self.told_ready, true) {
                return;
            }
            self.last_line = Instant::now();
            for d in drives {
                tracing::info!(
                    drive = d.job.drive,
                    percent = d.percent(),
                    mib_per_s = (d.rate / MIB) as u64,
                    eta_s = d.eta().map(|eta| eta.as_secs()),
                    backlog_mib = (d.backlog() as f64 / MIB) as u64,
                    "disk: {}",
                    standing(d.standing)
                );
            }
            return;
        }
        let style = ProgressStyle::with_template(
            "  {prefix} {wide_bar} {percent:>3} %  {bytes}/{total_bytes}\n      {msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        for (index, d) in drives.iter().enumerate() {
            if self.disks.len() <= index {
                let bar = ProgressBar::new(d.total)
                    .with_style(style.clone())
                    .with_prefix(d.job.drive.clone());
                self.disks.push(self.bars.add(bar));
            }
            let bar = &self.disks[index];
            bar.set_length(d.total);
            bar.set_position(d.copied);
            let eta = d
                .eta()
                .map_or(String::new(), |eta| format!(", ETA {} s", eta.as_secs()));
            bar.set_message(format!(
                "{}, {:.0} MiB/s, {:.1} MiB to go{eta}",
                standing(d.standing),
                d.rate / MIB,
                d.backlog() as f64 / MIB,
            ));
        }
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Awaited => "starting",
        Standing::Copying => "copying",
        Standing::Ready { synced: true } => "in step",
        Standing::Ready { synced: false } => "ready",
        Standing::Failing => "failing",
        Standing::Ended => "handed over",
    }
}

impl From<RamProgress> for metrics::Ram {
    fn from(p: RamProgress) -> Self {
        Self {
            total_bytes: p.total,
            transferred_bytes: p.transferred,
            remaining_bytes: p.remaining,
            passes: p.pass,
            bandwidth: p.bandwidth,
            dirty_rate: p.dirty_rate,
            predicted_downtime: p.bandwidth.is_some().then_some(p.predicted),
        }
    }
}

impl From<&DriveProgress> for metrics::Disk {
    fn from(d: &DriveProgress) -> Self {
        // QEMU counts from the moment when the job runs.
        let counted = d.standing != Standing::Awaited;
        Self {
            size_bytes: counted.then_some(d.total),
            transferred_bytes: counted.then_some(d.copied),
            backlog_bytes: counted.then(|| d.backlog()),
            bandwidth: (d.rate > 0.0).then_some(d.rate),
        }
    }
}

/// MiB per second, or `?` where it was not measured.
pub(crate) fn mib(rate: Option<f64>, decimals: usize) -> String {
    rate.map_or_else(
        || "?".to_owned(),
        |rate| format!("{:.decimals$}", rate / MIB),
    )
}
