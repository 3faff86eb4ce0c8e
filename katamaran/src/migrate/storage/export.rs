//! Drives that a QEMU exports over its own NBD server, on a unix socket that only this user can reach.
//!
//! A QEMU has one NBD server. One that an earlier run of ours left is stopped; one that serves somebody
//! else's exports is in the way, and said to be.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::{Side, StorageError};
use super::{PREFIX, qemu_id};
use crate::deadline;
use crate::migrate::error::chain;
use crate::qmp::command::{
    BlockExportAdd, BlockExportDel, NbdServerStart, NbdServerStop, QueryBlockExports,
};
use crate::qmp::{Qmp, QmpError};

/// Between two looks at exports that are on their way out.
const POLL: Duration = Duration::from_millis(2);

/// Our NBD server in a QEMU, and what it exports. Clones are the same server.
#[derive(Debug, Clone)]
pub(crate) struct Exports {
    qmp: Qmp,
    side: Side,
    open: Arc<AtomicBool>,
}

impl Exports {
    /// Nothing is exported yet; [`Exports::close`] may be called at any time from now on.
    pub(crate) fn new(qmp: Qmp, side: Side) -> Self {
        Self {
            qmp,
            side,
            open: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Makes sure that the server can be had, and stops one that an earlier run left.
    pub(crate) async fn start(&self, socket: PathBuf) -> Result<(), StorageError> {
        let exports = self
            .list()
            .await
            .map_err(|e| self.server("ask for its exports", e))?;
        let others: Vec<&str> = exports
            .iter()
            .filter(|(id, kind)| kind == "nbd" && !id.starts_with(PREFIX))
            .map(|(id, _)| id.as_str())
            .collect();
        if !others.is_empty() {
            return Err(StorageError::ServerInUse {
                side: self.side,
                exports: others.join(", "),
            });
        }
        self.remove_ours()
            .await
            .map_err(|e| self.server("remove exports of an earlier run", e))?;
        let start = NbdServerStart::unix(socket);
        let mut started = self.qmp.execute(start.clone()).await;
        if started.as_ref().is_err_and(QmpError::is_refused)
            && self.qmp.execute(NbdServerStop).await.is_ok()
        {
            // There was one already, and nobody used it.
            tracing::info!(side = %self.side, "stopped an NBD server that an earlier run had left");
            started = self.qmp.execute(start).await;
        }
        match started {
            Ok(_) => {
                self.open.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(self.server("start it", error)),
        }
    }

    /// Exports a node under the drive's name.
    pub(crate) async fn add(
        &self,
        drive: &str,
        node: &str,
        access: Access,
    ) -> Result<(), StorageError> {
        let export = BlockExportAdd::nbd(
            qemu_id(drive),
            node.to_owned(),
            drive.to_owned(),
            access == Access::Write,
        );
        match self.qmp.execute(export).await {
            Ok(_) => Ok(()),
            Err(error) => Err(StorageError::Qemu {
                drive: drive.to_owned(),
                doing: "export it",
                side: self.side,
                source: Arc::new(error),
            }),
        }
    }

    /// Stops the server, which closes every export on the way, also under its clients, and returns when they
    /// are gone. Idempotent; a QEMU that is gone exports nothing.
    pub(crate) async fn close(&self) -> Result<(), StorageError> {
        if !self.open.load(Ordering::Relaxed) || self.qmp.is_closed() {
            return Ok(());
        }
        let closed = async {
            // Both at once: QEMU answers in order, and the VM waits for it.
            let (stopped, left) = tokio::join!(self.qmp.execute(NbdServerStop), self.ours());
            match stopped {
                // Somebody else has stopped it: what counts is that the exports are gone.
                Err(error) if error.is_refused() => tracing::warn!(%error, "close the exports"),
                stopped => drop(stopped?),
            }
            match left?.as_slice() {
                [] => Ok(()),
                _ => self.until_none_is_ours().await,
            }
        };
        match closed.await {
            Ok(()) => {
                self.open.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.is_closed() => Ok(()),
            Err(error) => Err(self.server("close the exports", error)),
        }
    }

    /// Closes the server that a dead process has left.
    ///
    /// # Errors
    /// QEMU says no.
    pub(crate) async fn close_left_behind(&self) -> Result<(), StorageError> {
        self.open.store(true, Ordering::Relaxed);
        self.close().await
    }

    /// The same, as an undo step.
    pub(crate) async fn undo(self) -> Result<(), String> {
        self.close().await.map_err(|e| chain(&e))
    }

    /// (id, kind) of each export.
    async fn list(&self) -> Result<Vec<(String, String)>, QmpError> {
        let exports = self.qmp.execute(QueryBlockExports).await?;
        Ok(exports.into_iter().map(|e| (e.id, e.kind)).collect())
    }

    /// Ids of our exports.
    async fn ours(&self) -> Result<Vec<String>, QmpError> {
        let mut exports = self.list().await?;
        exports.retain(|(id, _)| id.starts_with(PREFIX));
        Ok(exports.into_iter().map(|(id, _)| id).collect())
    }

    async fn until_none_is_ours(&self) -> Result<(), QmpError> {
        let end = Instant::now() + deadline::EXPORT_CLOSE;
        while !self.ours().await?.is_empty() {
            if Instant::now() >= end {
                let within = deadline::EXPORT_CLOSE;
                return Err(QmpError::EventDeadline { within });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn remove_ours(&self) -> Result<(), QmpError> {
        for id in self.ours().await? {
            self.qmp.execute(BlockExportDel::hard(id)).await?;
        }
        self.until_none_is_ours().await
    }

    fn server(&self, doing: &'static str, error: QmpError) -> StorageError {
        StorageError::Server {
            side: self.side,
            doing,
            source: Arc::new(error),
        }
    }
}

/// What clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}
