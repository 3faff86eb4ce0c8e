//! Writes the metrics file while a migration goes on, never in its way: the file system may hang.

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::error::MetricsError;
use super::file::MetricsFile;
use super::page::Page;
use super::recorder::Metrics;
use crate::deadline;
use crate::role::Role;
use crate::session_id::SessionId;

/// The gauges of the migration in progress.
type Live = (Role, SessionId, Page);

/// Shows the gauges in the file, again and again, until `stop`; gives the file back.
///
/// # Errors
/// The file system hangs.
pub(super) async fn write(
    mut file: MetricsFile,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<MetricsFile, MetricsError> {
    let mut told = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(file),
            () = metrics.begun() => {}
            () = tokio::time::sleep(deadline::METRICS_PERIOD) => {}
        }
        let (back, result) = update(file, Page::default(), metrics.read().live)
            .await
            .inspect_err(warn)?;
        file = back;
        match result {
            Ok(()) => told = false,
            Err(error) if !told => {
                told = true;
                warn(&error);
            }
            Err(_) => {}
        }
    }
}

/// One [`MetricsFile::update`], within [`deadline::METRICS_WRITE`]. Not on the runtime's own threads: those are
/// waited for at the end of the process, and nobody can wait for one that hangs in the kernel.
///
/// # Errors
/// It hangs; the file is not given back.
pub(super) async fn update(
    mut file: MetricsFile,
    counted: Page,
    live: Option<Live>,
) -> Result<(MetricsFile, Result<(), MetricsError>), MetricsError> {
    let path = file.path().to_owned();
    let (done, waiting) = oneshot::channel();
    std::thread::spawn(move || {
        let live = live
            .as_ref()
            .map(|(role, session, page)| (*role, *session, page));
        let result = file.update(&counted, live);
        // Nobody waits any more when the deadline has passed.
        done.send((file, result)).ok();
    });
    match tokio::time::timeout(deadline::METRICS_WRITE, waiting).await {
        Ok(Ok(updated)) => Ok(updated),
        Ok(Err(_panicked)) => Err(MetricsError::WriterGone),
        Err(_elapsed) => Err(MetricsError::Hung {
            path,
            within: deadline::METRICS_WRITE,
        }),
    }
}

fn warn(error: &MetricsError) {
    let error: &(dyn std::error::Error + 'static) = error;
    tracing::warn!(error, "the metrics file is not up to date");
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_hangs_is_given_up() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("katamaran.prom");
        let file = MetricsFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // Whoever opens it waits for the other end.
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let error = update(file, Page::default(), None).await.unwrap_err();
        assert!(
            error.to_string().contains("katamaran.prom"),
            "{error}: not named"
        );
        drop(std::fs::OpenOptions::new().write(true).open(&path));
    }
}
