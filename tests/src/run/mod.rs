//! Whole migrations with traffic on: by katamaran, and by the means it is compared with.
//!
//! All of them are played on the same [`Stage`] and give the same [`MigrationRun`].

mod baseline;
mod disk;
mod katamaran;
mod migration;
mod result;
mod stage;

pub use self::baseline::{Baseline, BaselineOptions, run_baseline};
pub use self::disk::{DiskLoad, DiskResult};
pub use self::katamaran::{KatamaranProcess, Role, Stderr, katamaran_binary};
pub use self::migration::{Ended, Migration, MigrationOptions, run_migration, settle};
pub use self::result::{ClientResult, MigrationRun, SideResult};
pub use self::stage::{Client, Stage, StageOptions, Storage, Timeline, TrafficSpec};
