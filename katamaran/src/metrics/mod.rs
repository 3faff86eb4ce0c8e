//! Metrics for Prometheus: what this process measures, over HTTP and in a file for node_exporter's
//! textfile collector.
//!
//! Knows nothing of migrations: [`Metrics`] is told, [`Exporter`] shows.
//!
//! | | shows | lives |
//! |---|---|---|
//! | `--metrics-listen` | this process: gauges of its migration, counters from 0 | while it runs |
//! | `--metrics-file` | this node: the gauges of all migrations in progress, counters over all runs | for good |
//!
//! A value that was not measured is absent, never 0. [`catalogue()`] lists every metric.

mod catalogue;
mod decode;
mod encode;
mod error;
mod exporter;
mod file;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod page;
mod recorder;
mod server;
mod vocabulary;
mod writer;

pub use catalogue::{Family, Kind, catalogue};
pub use decode::Corrupt;
pub use error::MetricsError;
pub use exporter::{Exporter, Running};
pub use recorder::{Disk, Finished, HopCount, Metrics, Ram};
pub use vocabulary::{Outcome, Verdict};
