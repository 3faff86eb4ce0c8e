//! What a relay has carried and whether it works, for whoever watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::error::{Direction, RelayError};

/// Watches a relay; clones watch the same one.
#[derive(Debug, Clone)]
pub struct RelayStatus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to_destination: AtomicU64,
    to_source: AtomicU64,
    opened: AtomicU64,
    open: watch::Sender<u64>,
    failure: watch::Sender<Option<RelayError>>,
}

/// What a relay has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayCounters {
    /// Bytes from source to destination that were handed on.
    pub to_destination_bytes: u64,
    /// Bytes of the return path that were handed on.
    pub to_source_bytes: u64,
    /// Streams that were opened, ever.
    pub streams_opened: u64,
    /// Streams that are open.
    pub streams_open: u64,
}

impl RelayStatus {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                to_destination: AtomicU64::new(0),
                to_source: AtomicU64::new(0),
                opened: AtomicU64::new(0),
                open: watch::Sender::new(0),
                failure: watch::Sender::new(None),
            }),
        }
    }

    /// The counters now.
    #[must_use]
    pub fn counters(&self) -> RelayCounters {
        RelayCounters {
            to_destination_bytes: self.shared.to_destination.load(Ordering::Relaxed),
            to_source_bytes: self.shared.to_source.load(Ordering::Relaxed),
            streams_opened: self.shared.opened.load(Ordering::Relaxed),
            streams_open: *self.shared.open.borrow(),
        }
    }

    /// Waits for the first failure. Pends for ever while the relay works.
    ///
    /// A QEMU that quits after its migration may cut its streams: a failure matters as long as the
    /// migration is not completed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&self) -> RelayError {
        let mut failure = self.shared.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        let failed = failed.expect("the sender lives in self");
        failed.clone().expect("waited for")
    }

    /// The first failure, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<RelayError> {
        self.shared.failure.borrow().clone()
    }

    /// Waits until at least one stream was opened and none is open any more: all that QEMU sent
    /// was handed on, or its stream failed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn drained(&self) {
        let mut open = self.shared.open.subscribe();
        let drained = open
            .wait_for(|open| *open == 0 && self.shared.opened.load(Ordering::Relaxed) > 0)
            .await;
        drop(drained.expect("the sender lives in self"));
    }

    pub(super) fn fail(&self, error: RelayError) {
        self.shared.failure.send_if_modified(|failure| {
            if failure.is_some() {
                tracing::debug!(%error, "migration relay failed once more");
                return false;
            }
            tracing::debug!(%error, "migration relay failed");
            *failure = Some(error);
            true
        });
    }

    pub(super) fn count(&self, direction: Direction, bytes: usize) {
        let counter = match direction {
            Direction::ToDestination => &self.shared.to_destination,
            Direction::ToSource => &self.shared.to_source,
        };
        counter.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a stream as open as long as the result lives.
    pub(super) fn open(&self) -> OpenStream {
        self.shared.opened.fetch_add(1, Ordering::Relaxed);
        self.shared.open.send_modify(|open| *open += 1);
        OpenStream {
            status: self.clone(),
        }
    }
}

/// A stream that counts as open.
pub(super) struct OpenStream {
    status: RelayStatus,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.status.shared.open.send_modify(|open| *open -= 1);
    }
}
