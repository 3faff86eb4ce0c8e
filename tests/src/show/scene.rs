//! What every show is played on: the same VM, the same traffic, whatever moves it.

use std::time::Duration;

use anyhow::Result;

use super::figures::CALM;
use crate::lab::{LabConfig, QemuVersion};
use crate::run::{
    Baseline, BaselineOptions, DiskLoad, DriveOptions, MigrationOptions, MigrationRun,
    StageOptions, Storage, TrafficSpec, run_baseline, run_migration,
};

/// QEMU's downtime-limit of the plain migrations, in ms: the shortest one that it keeps on an idle VM.
pub(super) const PLAIN_DOWNTIME_LIMIT_MS: u64 = 20;

/// The VM and its traffic.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// Which QEMU.
    pub qemu: QemuVersion,
    /// UDP packets per second.
    pub pps: u32,
    /// Bytes per second over TCP.
    pub tcp: u64,
    /// Memory that the guest dirties: MB/s over MiB.
    pub dirty: Option<(u64, u64)>,
    /// V's disks, if it has any.
    pub disks: Option<SceneDisks>,
}

/// Local disks that V writes to all the time. A quarter of each is data that it does not touch.
#[derive(Debug, Clone, Copy)]
pub struct SceneDisks {
    /// How many.
    pub count: usize,
    /// MiB of each.
    pub mebibytes: u64,
    /// 4 KiB records a second to each, or [`DiskLoad::FLAT_OUT`].
    pub rate: u64,
}

impl SceneDisks {
    fn filled_mib(self) -> u64 {
        self.mebibytes / 4
    }

    fn load(self) -> DiskLoad {
        DiskLoad {
            rate: self.rate,
            blocks: ((self.mebibytes - self.filled_mib()) << 20) / 4096,
        }
    }
}

impl Scene {
    /// What is in place before a migration.
    #[must_use]
    pub(super) fn stage(&self) -> StageOptions {
        StageOptions {
            lab: LabConfig {
                qemu: self.qemu,
                dirty: self.dirty,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: self.pps,
                tcp_v4: (self.tcp > 0).then_some(self.tcp),
                disk: self.disks.map(SceneDisks::load),
                ..TrafficSpec::default()
            },
            storage: match self.disks {
                Some(disks) => Storage::Local(disks.mebibytes),
                None => Storage::Diskless,
            },
            drives: self
                .disks
                .map_or_else(DriveOptions::default, |disks| DriveOptions {
                    count: disks.count,
                    filled_mib: disks.filled_mib(),
                    ..DriveOptions::default()
                }),
            calm: CALM,
            ..StageOptions::default()
        }
    }

    /// How katamaran is run.
    pub(super) fn migration(&self) -> MigrationOptions {
        MigrationOptions {
            stage: self.stage(),
            source_args: vec!["--require-zero-drop".to_owned()],
            ..MigrationOptions::default()
        }
    }

    /// One migration by katamaran.
    pub(super) fn by_katamaran(&self) -> Result<MigrationRun> {
        run_migration(self.migration())
    }

    /// One migration by plain QMP. The route is moved as soon as V runs on B: no network converges faster.
    pub(super) fn by_plain_means(&self, kind: Baseline) -> Result<MigrationRun> {
        run_baseline(
            kind,
            &BaselineOptions {
                stage: self.stage(),
                downtime_limit_ms: PLAIN_DOWNTIME_LIMIT_MS,
                converge_after: match kind {
                    Baseline::Plain => Duration::ZERO,
                    // The tunnel has to carry something.
                    _ => MigrationOptions::default().converge_after,
                },
                ..BaselineOptions::default()
            },
        )
    }
}
