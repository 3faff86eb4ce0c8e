//! Every metric there is: its name, type, labels and meaning. The encoder writes nothing else, the
//! reader of the metrics file takes nothing else, and `docs/metrics.md` lists exactly these (a test
//! compares them).

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, over all runs that share a file.
    Counter,
    /// Counts observations in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As the exposition format names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric with all its series.
#[derive(Debug, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    /// In the order in which series give their values.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Family {
    /// Whether its series belong to one migration, and go with it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.labels.contains(&"session")
    }
}

/// Seconds: 1 s to 2 h.
const DURATIONS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0,
];
/// Seconds: 1 ms to 30 s; `--downtime` is 50 ms unless it is given.
const PAUSES: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

const LIVE: &[&str] = &["role", "session"];
const DRIVE: &[&str] = &["role", "session", "drive"];

macro_rules! families {
    ($($constant:ident = $name:literal, $kind:expr, $labels:expr, $help:literal;)+) => {
        $(
            pub(super) static $constant: Family = Family {
                name: $name,
                kind: $kind,
                labels: $labels,
                help: $help,
            };
        )+
        static ALL: &[&Family] = &[$(&$constant),+];
    };
}

families! {
    BUILD_INFO = "katamaran_build_info", Kind::Gauge, &["version"],
        "1, labelled with the version of the katamaran that wrote this.";
    ACTIVE = "katamaran_migration_active_migrations", Kind::Gauge, &["role"],
        "Migrations in progress.";
    MIGRATIONS = "katamaran_migration_migrations_total", Kind::Counter, &["role", "result"],
        "Migrations that have ended, by result.";
    REFUSALS = "katamaran_migration_refusals_total", Kind::Counter, &["role"],
        "Migrations that were refused before anything was touched.";
    DURATION = "katamaran_migration_duration_seconds", Kind::Histogram(DURATIONS), &["role", "result"],
        "Time from the start of a migration to its end, clean-up included.";
    DOWNTIME = "katamaran_migration_downtime_seconds", Kind::Histogram(PAUSES), &["role"],
        "STOP of the VM on the source to its RESUME on the destination.";
    BLACKOUT = "katamaran_migration_blackout_seconds", Kind::Histogram(PAUSES), &["role"],
        "Flip of the redirect to the release of the held packets.";
    VERDICTS = "katamaran_migration_verdicts_total", Kind::Counter, &["role", "verdict"],
        "Zero-drop verdicts of migrations that ended with the VM on the destination.";
    PACKETS = "katamaran_migration_packets_total", Kind::Counter, &["role", "hop"],
        "Packets of the VM by hop of the ledger, over the migrations whose counter was read.";
    UNREAD = "katamaran_migration_unread_counters_total", Kind::Counter, &["role", "hop"],
        "Migrations in whose ledger the counter of this hop is missing.";
    LOST = "katamaran_migration_lost_packets_total", Kind::Counter, &["role"],
        "Packets of the VM that the ledger says were lost.";
    DUPLICATED = "katamaran_migration_duplicated_packets_total", Kind::Counter, &["role"],
        "Packets of the VM that the ledger says were delivered twice.";
    KERNEL_DROPS = "katamaran_migration_kernel_drops_total", Kind::Counter, &["role"],
        "Packets of the VM that either kernel reported as dropped.";
    RAM_SENT = "katamaran_migration_ram_sent_bytes_total", Kind::Counter, &["role"],
        "Bytes of RAM that QEMU sent, over all migrations.";
    DISK_SENT = "katamaran_migration_disk_sent_bytes_total", Kind::Counter, &["role"],
        "Bytes of disks that were mirrored, over all migrations.";
    START_TIME = "katamaran_migration_start_time_seconds", Kind::Gauge, LIVE,
        "When this migration began, in seconds since the epoch.";
    PHASE = "katamaran_migration_phase", Kind::Gauge, &["role", "session", "phase"],
        "1 for the phase that this migration is in.";
    RAM_SIZE = "katamaran_migration_ram_size_bytes", Kind::Gauge, LIVE,
        "Size of the VM's RAM, as QEMU migrates it.";
    RAM_TRANSFERRED = "katamaran_migration_ram_transferred_bytes", Kind::Gauge, LIVE,
        "Bytes of RAM sent so far.";
    RAM_REMAINING = "katamaran_migration_ram_remaining_bytes", Kind::Gauge, LIVE,
        "Bytes of RAM still to be sent, as of the last sync.";
    RAM_BANDWIDTH = "katamaran_migration_ram_bandwidth_bytes_per_second", Kind::Gauge, LIVE,
        "Measured speed of the RAM copy.";
    RAM_DIRTY_RATE = "katamaran_migration_ram_dirty_bytes_per_second", Kind::Gauge, LIVE,
        "Measured speed at which the guest changes its RAM.";
    RAM_PASSES = "katamaran_migration_ram_passes", Kind::Gauge, LIVE,
        "Passes over the RAM so far (syncs of the dirty bitmap).";
    PREDICTED_DOWNTIME = "katamaran_migration_predicted_downtime_seconds", Kind::Gauge, LIVE,
        "How long the pause would be if the VM were stopped now.";
    DISK_SIZE = "katamaran_migration_disk_size_bytes", Kind::Gauge, DRIVE,
        "Bytes of this drive to be mirrored, as known so far.";
    DISK_TRANSFERRED = "katamaran_migration_disk_transferred_bytes", Kind::Gauge, DRIVE,
        "Bytes of this drive mirrored so far.";
    DISK_BACKLOG = "katamaran_migration_disk_backlog_bytes", Kind::Gauge, DRIVE,
        "Bytes of this drive that the destination does not have yet.";
    DISK_BANDWIDTH = "katamaran_migration_disk_bandwidth_bytes_per_second", Kind::Gauge, DRIVE,
        "Measured speed of this drive's mirror.";
}

/// Every metric, in the order in which they are written.
#[must_use]
pub fn catalogue() -> &'static [&'static Family] {
    ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus_conventions() {
        for family in catalogue() {
            let name = family.name;
            assert!(name.starts_with("katamaran_"), "{name}");
            assert!(
                name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
            assert_eq!(
                family.kind == Kind::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            if matches!(family.kind, Kind::Histogram(_)) {
                assert!(name.ends_with("_seconds"), "{name} has no base unit");
            }
            assert!(family.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn no_name_is_taken_twice_also_not_by_a_suffix() {
        let mut names: Vec<&str> = catalogue().iter().map(|family| family.name).collect();
        for family in catalogue() {
            // OpenMetrics names a counter's family without its suffix.
            if let Some(base) = family.name.strip_suffix("_total") {
                names.push(base);
            }
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn bounds_are_ascending() {
        for bounds in [DURATIONS, PAUSES] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
