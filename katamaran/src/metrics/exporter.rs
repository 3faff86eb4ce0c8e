//! Shows the book: over HTTP, in a file, both or not at all.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::MetricsError;
use super::file::MetricsFile;
use super::page::Page;
use super::recorder::{Finished, Metrics};
use super::server;
use super::vocabulary::Role;
use crate::deadline;

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
            .map(|file| tokio::spawn(write(file, self.metrics.clone(), stop.clone())));
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
    writer: Option<JoinHandle<Option<MetricsFile>>>,
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
        let Ok(Some(mut file)) = writer.await else {
            return Err(MetricsError::WriterGone);
        };
        let counted = self.metrics.read().counted;
        // One small file, under its own deadline; nothing else runs any more.
        tokio::task::spawn_blocking(move || file.update(&counted, None))
            .await
            .map_err(|_panicked| MetricsError::WriterGone)?
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

/// Shows the gauges in the file, again and again. Gives the file back at the end.
async fn write(
    mut file: MetricsFile,
    metrics: Metrics,
    stop: CancellationToken,
) -> Option<MetricsFile> {
    let mut told = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Some(file),
            () = metrics.begun() => {}
            () = tokio::time::sleep(deadline::METRICS_PERIOD) => {}
        }
        let live = metrics.read().live;
        let written = tokio::task::spawn_blocking(move || {
            let live = live
                .as_ref()
                .map(|(role, session, page)| (*role, *session, page));
            let result = file.update(&Page::default(), live);
            (file, result)
        });
        let (back, result) = written.await.ok()?;
        file = back;
        match result {
            Ok(()) => told = false,
            Err(error) if !told => {
                told = true;
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(error, "the metrics file is not up to date");
            }
            Err(_) => {}
        }
    }
}
