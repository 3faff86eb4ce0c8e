//! Shows the book: over HTTP, in a file, both or not at all.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::MetricsError;
use super::file::MetricsFile;
use super::recorder::{Finished, Metrics};
use super::{server, writer};
use crate::role::Role;

/// Where metrics go. Opened before a migration touches anything, so that what is wrong with an address
/// or a file is known by then.
#[derive(Debug)]
pub struct Exporter {
    metrics: Metrics,
    listener: Option<TcpListener>,
    file: Option<MetricsFile>,
}

impl Exporter {
    /// Listens at `address` and opens `file`, where given.
    ///
    /// # Errors
    /// The address is in use or not this node's; the file can't be written, or is not one of ours.
    pub fn open(
        role: Role,
        address: Option<SocketAddr>,
        file: Option<&Path>,
    ) -> Result<Self, MetricsError> {
        let listener = address.map(listen).transpose()?;
        let file = file.map(MetricsFile::open).transpose()?;
        Ok(Self {
            metrics: Metrics::new(role),
            listener,
            file,
        })
    }

    /// The book to write into.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Serves and writes until [`Running::stop`]. Needs a runtime.
    #[must_use]
    pub fn start(self) -> Running {
        let stop = CancellationToken::new();
        let server = self.listener.and_then(|listener| {
            let listener = tokio::net::TcpListener::from_std(listener)
                .inspect_err(|error| tracing::warn!(%error, "metrics are not served"))
                .ok()?;
            let serving = server::serve(listener, self.metrics.clone(), stop.clone());
            Some(tokio::spawn(serving))
        });
        let writer = self
            .file
            .map(|file| tokio::spawn(writer::write(file, self.metrics.clone(), stop.clone())));
        Running {
            metrics: self.metrics,
            stop,
            server,
            writer,
        }
    }
}

/// An exporter at work.
#[derive(Debug)]
pub struct Running {
    metrics: Metrics,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<Result<MetricsFile, MetricsError>>>,
}

impl Running {
    /// Stops serving, counts what the migration came to, and writes the file once more.
    ///
    /// # Errors
    /// The file can't be written: what this migration counted is not in it.
    pub async fn finish(self, finished: &Finished) -> Result<(), MetricsError> {
        self.stop.cancel();
        if let Some(server) = self.server {
            // It ends at once; if it panicked, there is nothing left to stop.
            drop(server.await);
        }
        self.metrics.finish(finished);
        let Some(writer) = self.writer else {
            return Ok(());
        };
        let file = writer
            .await
            .map_err(|_panicked| MetricsError::WriterGone)??;
        let counted = self.metrics.read().counted;
        let (_, written) = writer::update(file, counted, None).await?;
        written
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let listener = TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| MetricsError::Listen { address, source })?;
    let bound = listener.local_addr().unwrap_or(address);
    tracing::info!(url = %format_args!("http://{bound}/metrics"), "serving metrics");
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;
    use crate::deadline;
    use crate::metrics::Outcome;
    use crate::session_id::SessionId;

    const ACTIVE: &str = "katamaran_migration_active_migrations{role=\"source\"} 1\n";

    #[tokio::test]
    async fn the_file_shows_a_migration_as_soon_as_it_begins_and_counts_it_at_its_end() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("katamaran.prom");
        let read = || std::fs::read_to_string(&path).unwrap();
        for runs in 1..=2 {
            let exporter = Exporter::open(Role::Source, None, Some(&path)).unwrap();
            let metrics = exporter.metrics();
            let running = exporter.start();
            assert!(!read().contains(ACTIVE));
            metrics.begin(SessionId(runs));
            let began = Instant::now();
            while !read().contains(ACTIVE) {
                assert!(
                    began.elapsed() < deadline::METRICS_PERIOD,
                    "not at once:\n{}",
                    read()
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let ended = Finished::new(Outcome::Cancelled);
            running.finish(&ended).await.unwrap();
            let line = format!(
                "katamaran_migration_migrations_total{{role=\"source\",result=\"cancelled\"}} {runs}\n"
            );
            assert!(read().contains(&line), "{}", read());
            assert!(!read().contains(ACTIVE), "{}", read());
        }
    }

    #[tokio::test]
    async fn without_a_place_to_go_metrics_cost_nothing() {
        let exporter = Exporter::open(Role::Destination, None, None).unwrap();
        let running = exporter.start();
        let ended = Finished::new(Outcome::Failed);
        running.finish(&ended).await.unwrap();
    }

    #[test]
    fn an_address_in_use_is_told_before_the_file_is_touched() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("katamaran.prom");
        let address = taken.local_addr().unwrap();
        let error = Exporter::open(Role::Source, Some(address), Some(&path)).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(!path.exists());
    }
}
