//! What a relay runs, and how all of it ends.

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::deadline;

/// The work of one relay; it ends with it.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Tasks {
    /// Runs `work` until it is done, or dropped half-way by [`Tasks::shutdown`].
    pub(super) fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.running.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// Ends all work and waits for that; what does not end in time is aborted.
    pub(super) async fn shutdown(mut self) {
        self.stop.cancel();
        let joined = timeout(deadline::RELAY_SHUTDOWN, async {
            while self.running.join_next().await.is_some() {}
        });
        if joined.await.is_err() {
            tracing::warn!("migration relay aborted");
            self.running.shutdown().await;
        }
    }
}
