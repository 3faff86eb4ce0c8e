//! Whole migrations with traffic on: by katamaran, and by the means it is compared with.
//!
//! All of them are played on the same [`Stage`] and give the same [`MigrationRun`].

mod ablation;
mod baseline;
mod client;
mod crowd;
mod disk;
mod drives;
mod fault;
mod go_order;
mod katamaran;
mod laggard;
mod migration;
#[path = "../../guest/src/record.rs"]
mod record;
mod records;
mod result;
mod stage;
mod terminal;
mod timeline;

pub use self::ablation::{Ablation, AblationOptions, run_ablation};
pub use self::baseline::{Baseline, BaselineOptions, run_baseline};
pub use self::client::Client;
pub use self::crowd::{CrowdOptions, CrowdRun, Member, run_crowd};
pub use self::disk::{DiskLoad, DiskResult};
pub use self::drives::{Destination, DriveOptions};
pub use self::fault::{Fault, FaultCase, FaultRun, Moment, run_with_fault};
pub use self::go_order::{GoOrderOptions, GoOrderRun, Mishap, mirror_directly, run_go_order};
pub use self::katamaran::{KatamaranProcess, Role, Stderr, katamaran_binary, katamaran_command};
pub use self::laggard::Laggard;
pub use self::migration::{
    Ended, Migration, MigrationOptions, run_migration, run_migration_on, settle,
};
pub use self::records::DriveResult;
pub use self::result::{ClientResult, MigrationRun, SideResult};
pub use self::stage::{Meddle, Stage, StageOptions, Storage, TrafficSpec};
pub use self::timeline::Timeline;
