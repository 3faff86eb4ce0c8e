//! What a migration tells of itself, as it goes and at its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::catalogue::{
    BLACKOUT, DISK_BACKLOG, DISK_BANDWIDTH, DISK_SENT, DISK_SIZE, DISK_TRANSFERRED, DOWNTIME,
    DUPLICATED, DURATION, KERNEL_DROPS, LOST, MIGRATIONS, PACKETS, PHASE, PREDICTED_DOWNTIME,
    RAM_BANDWIDTH, RAM_DIRTY_RATE, RAM_PASSES, RAM_REMAINING, RAM_SENT, RAM_SIZE, RAM_TRANSFERRED,
    REFUSALS, START_TIME, UNREAD, VERDICTS,
};
use super::encode::encode;
use super::page::{Page, Value};
use super::vocabulary::{Outcome, Verdict};
use crate::role::Role;
use crate::session_id::SessionId;

/// Where the RAM copy stands.
#[derive(Debug, Clone, Copy)]
pub struct Ram {
    pub total_bytes: u64,
    pub transferred_bytes: u64,
    pub remaining_bytes: u64,
    pub passes: u64,
    /// Bytes per second, once measured.
    pub bandwidth: Option<f64>,
    /// Bytes per second, once measured.
    pub dirty_rate: Option<f64>,
    pub predicted_downtime: Option<Duration>,
}

/// Where the mirror of one drive stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk {
    pub size_bytes: Option<u64>,
    pub transferred_bytes: Option<u64>,
    /// What the destination does not have yet.
    pub backlog_bytes: Option<u64>,
    /// Bytes per second, once measured.
    pub bandwidth: Option<f64>,
}

/// One hop of the ledger.
#[derive(Debug, Clone, Copy)]
pub struct HopCount {
    /// `s1`, `s2_read`, ...
    pub hop: &'static str,
    /// None if the counter could not be read.
    pub packets: Option<u64>,
}

/// What a migration came to.
#[derive(Debug, Clone)]
pub struct Finished {
    pub outcome: Outcome,
    pub downtime: Option<Duration>,
    pub blackout: Option<Duration>,
    /// None unless the VM runs on the destination.
    pub verdict: Option<Verdict>,
    /// Empty where there is no ledger.
    pub hops: Vec<HopCount>,
    pub lost: Option<u64>,
    pub duplicated: Option<u64>,
    pub kernel_drops: Option<u64>,
    /// Bytes.
    pub ram_sent: Option<u64>,
}

impl Finished {
    /// Nothing but how it ended.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            downtime: None,
            blackout: None,
            verdict: None,
            hops: Vec::new(),
            lost: None,
            duplicated: None,
            kernel_drops: None,
            ram_sent: None,
        }
    }
}

/// Takes down what one process measures; clones write into the same book. Each call is quick and
/// touches memory only.
#[derive(Debug, Clone)]
pub struct Metrics {
    book: Arc<Mutex<Book>>,
    begun: Arc<Notify>,
}

#[derive(Debug)]
struct Book {
    role: Role,
    migration: Option<Migration>,
    phase: Option<&'static str>,
    /// Gauges of the migration in progress.
    live: Page,
    /// What has ended.
    counted: Page,
}

#[derive(Debug, Clone, Copy)]
struct Migration {
    session: SessionId,
    began: Instant,
}

/// The book at one moment.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) counted: Page,
    pub(super) live: Option<(Role, SessionId, Page)>,
}

impl Metrics {
    /// An empty book.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            book: Arc::new(Mutex::new(Book {
                role,
                migration: None,
                phase: None,
                live: Page::default(),
                counted: Page::default(),
            })),
            begun: Arc::default(),
        }
    }

    /// A migration begins. On the destination that is when a source has come.
    pub fn begin(&self, session: SessionId) {
        let mut book = self.lock();
        book.live = Page::default();
        book.migration = Some(Migration {
            session,
            began: Instant::now(),
        });
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64());
        // Milliseconds are enough, and short.
        let now = (now * 1000.0).round() / 1000.0;
        let role = book.role.name();
        book.live
            .set(&START_TIME, &[role, &session.to_string()], now);
        book.show_phase();
        self.begun.notify_one();
    }

    /// The migration has come to this phase.
    pub fn phase(&self, name: &'static str) {
        let mut book = self.lock();
        book.hide_phase();
        book.phase = Some(name);
        book.show_phase();
    }

    /// The RAM copy goes on.
    pub fn ram(&self, ram: Ram) {
        let mut book = self.lock();
        let Some((role, session)) = book.labels() else {
            return;
        };
        let seconds = ram.predicted_downtime.map(|pause| pause.as_secs_f64());
        for (family, value) in [
            (&RAM_SIZE, Some(float(ram.total_bytes))),
            (&RAM_TRANSFERRED, Some(float(ram.transferred_bytes))),
            (&RAM_REMAINING, Some(float(ram.remaining_bytes))),
            (&RAM_PASSES, Some(float(ram.passes))),
            (&RAM_BANDWIDTH, ram.bandwidth),
            (&RAM_DIRTY_RATE, ram.dirty_rate),
            (&PREDICTED_DOWNTIME, seconds),
        ] {
            book.live.set_measured(family, &[role, &session], value);
        }
    }

    /// The mirror of one drive goes on.
    pub fn disk(&self, drive: &str, disk: Disk) {
        let mut book = self.lock();
        let Some((role, session)) = book.labels() else {
            return;
        };
        for (family, value) in [
            (&DISK_SIZE, disk.size_bytes.map(float)),
            (&DISK_TRANSFERRED, disk.transferred_bytes.map(float)),
            (&DISK_BACKLOG, disk.backlog_bytes.map(float)),
            (&DISK_BANDWIDTH, disk.bandwidth),
        ] {
            book.live
                .set_measured(family, &[role, &session, drive], value);
        }
    }

    /// The migration has ended: its gauges go, its counts stay.
    pub fn finish(&self, finished: &Finished) {
        let mut book = self.lock();
        let role = book.role.name();
        let migration = book.migration.take();
        let live = std::mem::take(&mut book.live);
        let counted = &mut book.counted;
        let Some(result) = finished.outcome.result() else {
            counted.count(&REFUSALS, &[role], 1.0);
            return;
        };
        // A destination that no source came to has not migrated anything.
        let Some(migration) = migration else { return };
        counted.count(&MIGRATIONS, &[role, result], 1.0);
        let took = migration.began.elapsed().as_secs_f64();
        counted.observe(&DURATION, &[role, result], took);
        for (family, pause) in [
            (&DOWNTIME, finished.downtime),
            (&BLACKOUT, finished.blackout),
        ] {
            if let Some(pause) = pause {
                counted.observe(family, &[role], pause.as_secs_f64());
            }
        }
        if let Some(verdict) = finished.verdict {
            counted.count(&VERDICTS, &[role, verdict.name()], 1.0);
        }
        for HopCount { hop, packets } in &finished.hops {
            match packets {
                Some(packets) => counted.count(&PACKETS, &[role, hop], float(*packets)),
                None => counted.count(&UNREAD, &[role, hop], 1.0),
            }
        }
        for (family, value) in [
            (&LOST, finished.lost.map(float)),
            (&DUPLICATED, finished.duplicated.map(float)),
            (&KERNEL_DROPS, finished.kernel_drops.map(float)),
            (&RAM_SENT, finished.ram_sent.map(float)),
            (&DISK_SENT, mirrored(&live)),
        ] {
            if let Some(value) = value {
                counted.count(family, &[role], value);
            }
        }
    }

    /// The book as Prometheus reads it: this process alone.
    #[must_use]
    pub fn text(&self) -> String {
        let reading = self.read();
        let mut page = Page::zero();
        page.add(&reading.counted);
        if let Some((_, _, live)) = &reading.live {
            page.add(live);
        }
        page.complete();
        encode(&page)
    }

    /// Until a migration has begun that was not waited for before.
    pub(super) async fn begun(&self) {
        self.begun.notified().await;
    }

    pub(super) fn read(&self) -> Reading {
        let book = self.lock();
        Reading {
            counted: book.counted.clone(),
            live: book
                .migration
                .map(|migration| (book.role, migration.session, book.live.clone())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // Nothing in here panics half-way through.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn labels(&self) -> Option<(&'static str, String)> {
        let session = self.migration?.session.to_string();
        Some((self.role.name(), session))
    }

    fn show_phase(&mut self) {
        if let (Some(phase), Some((role, session))) = (self.phase, self.labels()) {
            self.live.set(&PHASE, &[role, &session, phase], 1.0);
        }
    }

    fn hide_phase(&mut self) {
        if let (Some(phase), Some((role, session))) = (self.phase, self.labels()) {
            self.live
                .set_measured(&PHASE, &[role, &session, phase], None);
        }
    }
}

/// What all drives together have mirrored, if that was measured.
fn mirrored(live: &Page) -> Option<f64> {
    live.series(&DISK_TRANSFERRED)
        .filter_map(|(_, value)| match value {
            Value::Number(bytes) => Some(*bytes),
            Value::Histogram(_) => None,
        })
        .reduce(|sum, bytes| sum + bytes)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(0xc0ffee);

    #[track_caller]
    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(
                text.lines().any(|l| l == format!("katamaran_{line}")),
                "no line katamaran_{line} in\n{text}"
            );
        }
    }

    fn success() -> Finished {
        Finished {
            downtime: Some(Duration::from_millis(17)),
            verdict: Some(Verdict::Proven),
            hops: vec![
                HopCount {
                    hop: "s1",
                    packets: Some(2600),
                },
                HopCount {
                    hop: "d1",
                    packets: None,
                },
            ],
            lost: Some(0),
            ram_sent: Some(100),
            ..Finished::new(Outcome::Success)
        }
    }

    #[test]
    fn a_migration_in_progress_is_shown_with_what_was_measured() {
        let metrics = Metrics::new(Role::Source);
        metrics.phase("prepare");
        metrics.begin(SESSION);
        metrics.phase("copy RAM");
        metrics.ram(Ram {
            total_bytes: 1000,
            transferred_bytes: 10,
            remaining_bytes: 990,
            passes: 1,
            bandwidth: None,
            dirty_rate: Some(0.0),
            predicted_downtime: None,
        });
        let text = metrics.text();
        assert_lines(
            &text,
            &[
                "migration_active_migrations{role=\"source\"} 1",
                "migration_active_migrations{role=\"destination\"} 0",
                "migration_phase{role=\"source\",session=\"0000000000c0ffee\",phase=\"copy RAM\"} 1",
                "migration_ram_remaining_bytes{role=\"source\",session=\"0000000000c0ffee\"} 990",
                "migration_ram_dirty_bytes_per_second{role=\"source\",session=\"0000000000c0ffee\"} 0",
            ],
        );
        assert!(!text.contains("ram_bandwidth"), "not measured yet:\n{text}");
        assert!(!text.contains("prepare"), "that phase is over:\n{text}");
    }

    #[test]
    fn a_migration_that_ended_is_counted_and_its_gauges_are_gone() {
        let metrics = Metrics::new(Role::Source);
        metrics.begin(SESSION);
        for (drive, bytes) in [("a", 5), ("b", 6)] {
            metrics.disk(
                drive,
                Disk {
                    transferred_bytes: Some(bytes),
                    ..Disk::default()
                },
            );
        }
        metrics.finish(&success());
        let text = metrics.text();
        assert_lines(
            &text,
            &[
                "migration_active_migrations{role=\"source\"} 0",
                "migration_migrations_total{role=\"source\",result=\"success\"} 1",
                "migration_migrations_total{role=\"source\",result=\"timeout\"} 0",
                "migration_verdicts_total{role=\"source\",verdict=\"proven\"} 1",
                "migration_packets_total{role=\"source\",hop=\"s1\"} 2600",
                "migration_unread_counters_total{role=\"source\",hop=\"d1\"} 1",
                "migration_lost_packets_total{role=\"source\"} 0",
                "migration_downtime_seconds_count{role=\"source\"} 1",
                "migration_duration_seconds_count{role=\"source\",result=\"success\"} 1",
                "migration_ram_sent_bytes_total{role=\"source\"} 100",
                "migration_disk_sent_bytes_total{role=\"source\"} 11",
            ],
        );
        for absent in ["session=", "hop=\"d1\"} 0", "duplicated", "blackout"] {
            assert!(!text.contains(absent), "{absent} in\n{text}");
        }
    }

    #[test]
    fn a_refusal_is_no_migration() {
        let metrics = Metrics::new(Role::Source);
        metrics.begin(SESSION);
        metrics.finish(&Finished::new(Outcome::Refused));
        let text = metrics.text();
        assert_lines(&text, &["migration_refusals_total{role=\"source\"} 1"]);
        assert!(!text.contains("duration"), "{text}");
        assert!(
            text.lines()
                .filter(|l| l.starts_with("katamaran_migration_migrations_total{"))
                .all(|l| l.ends_with(" 0")),
            "{text}"
        );
    }

    #[test]
    fn a_destination_that_nobody_came_to_has_counted_nothing() {
        let metrics = Metrics::new(Role::Destination);
        metrics.phase("wait for the source");
        let before = metrics.text();
        metrics.finish(&Finished::new(Outcome::Cancelled));
        assert_eq!(metrics.text(), before);
    }
}
