//! Work on files that may hang: a volume's server may be away.

use tokio::sync::oneshot;

use crate::deadline;
use crate::migrate::error::MigrateError;

/// Runs `work` on a thread of its own, within [`deadline::VOLUME`]. Not on the runtime's own threads: those are
/// waited for at the end of the process, and nobody can wait for a thread that hangs in the kernel.
pub(super) async fn aside<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, MigrateError> {
    let (done, waiting) = oneshot::channel();
    std::thread::spawn(move || {
        // Nobody waits any more when the deadline has passed.
        done.send(work()).ok();
    });
    match tokio::time::timeout(deadline::VOLUME, waiting).await {
        Ok(Ok(result)) => Ok(result),
        // The thread died, or hangs.
        Ok(Err(_)) | Err(_) => Err(MigrateError::Deadline {
            what,
            within: deadline::VOLUME,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_hangs_is_given_up() {
        let (never, hang) = std::sync::mpsc::channel::<()>();
        let error = aside("a look at the volume", move || hang.recv())
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("a look at the volume"),
            "{error}"
        );
        drop(never);
    }

    #[tokio::test]
    async fn work_that_ends_has_its_result() {
        assert_eq!(aside("a sum", || 1 + 1).await.unwrap(), 2);
    }
}
