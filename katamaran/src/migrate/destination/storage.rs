//! The drives that the source mirrors: exported by QEMU on a unix socket, which streams of the session
//! lead to. No port of the node is opened for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::control::Stream;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{Checksums, Storage, VmDescription};
use crate::migrate::node::{Node, refused};
use crate::migrate::rollback::UndoStack;
use crate::migrate::storage::checksum::{BATCH, Checksummer};
use crate::migrate::storage::drive::{self, Drive};
use crate::migrate::storage::export::{Access, Exports};
use crate::migrate::storage::{Side, StorageError};
use crate::nbd::NbdError;
use crate::qmp::command::QueryBlock;
use crate::relay::{Carries, DestinationRelay};

/// The socket of QEMU's NBD server, in the session's directory.
const SOCKET: &str = "nbd";

/// The drives here that the source's are mirrored to; none when it mirrors none.
///
/// # Errors
/// All differences at once.
pub(crate) async fn compare(
    node: &Node,
    theirs: &VmDescription,
    shared: bool,
    named: Option<&[String]>,
) -> Result<Vec<Drive>, MigrateError> {
    match (theirs.storage, shared) {
        (Storage::Mirrored, false) => {}
        (Storage::Shared, true) => return Ok(Vec::new()),
        (Storage::Mirrored, true) => {
            return Err(refused(
                "--shared-storage is given here and not on the source: give it on both nodes, or on none",
            ));
        }
        (Storage::Shared, false) => {
            return Err(refused(
                "--shared-storage is given on the source and not here: give it on both nodes, or on none",
            ));
        }
    }
    let disks = node
        .qmp
        .execute(QueryBlock)
        .await
        .doing("ask for the VM's drives")?;
    drive::compare(&theirs.drives, named, &disks)
        .map_err(|problems| MigrateError::Refused { problems })
}

/// The exports and the way to them.
#[derive(Debug)]
pub(super) struct Exported {
    exports: Exports,
    socket: PathBuf,
    /// The drive that is being compared.
    compared: Option<(String, Checksummer)>,
    relay: Option<DestinationRelay>,
}

impl Exported {
    /// Exports every drive for writing.
    pub(super) async fn open(
        node: &Node,
        directory: &Path,
        drives: &[Drive],
        undo: &mut UndoStack,
    ) -> Result<Self, StorageError> {
        let socket = directory.join(SOCKET);
        let exports = Exports::new(node.qmp.clone(), Side::Destination);
        let close = exports.clone();
        undo.cleanup("exports of the drives", move || close.undo());
        exports.start(socket.clone()).await?;
        for drive in drives {
            exports
                .add(&drive.description.id, &drive.node, Access::Write)
                .await?;
        }
        Ok(Self {
            exports,
            relay: Some(DestinationRelay::start(&socket, Carries::Drives)),
            socket,
            compared: None,
        })
    }

    /// A stream of the source's QEMU has arrived.
    pub(super) async fn add(&self, stream: Stream) {
        match &self.relay {
            Some(relay) => relay.add(stream.index, stream.io).await,
            None => tracing::warn!("a stream for exports that are closed is closed"),
        }
    }

    /// Checksums of a drive, read through QEMU as the guest will.
    pub(super) async fn checksums(
        &mut self,
        drive: &str,
        first_block: u64,
        blocks: u64,
    ) -> Result<Checksums, StorageError> {
        let failed = |source: NbdError| StorageError::Compare {
            drive: drive.to_owned(),
            side: Side::Destination,
            source: Arc::new(source),
        };
        let mut reader = match self.compared.take() {
            Some((open, reader)) if open == drive => reader,
            other => {
                if let Some((_, reader)) = other {
                    reader.close().await;
                }
                Checksummer::open(&self.socket, drive)
                    .await
                    .map_err(failed)?
            }
        };
        let checksums = reader
            .batch(first_block, blocks.min(BATCH))
            .await
            .map_err(failed)?;
        self.compared = Some((drive.to_owned(), reader));
        Ok(Checksums(checksums))
    }

    /// Cuts what is connected, and closes the exports for good.
    pub(super) async fn close(&mut self) -> Result<(), StorageError> {
        if let Some((_, reader)) = self.compared.take() {
            reader.close().await;
        }
        self.cut().await;
        self.exports.close().await
    }

    /// Cuts what is connected.
    pub(super) async fn cut(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.shutdown().await;
        }
    }
}
