//! `--verify-storage`: while the VM is stopped, both nodes read their drives through their own QEMU and
//! compare checksums, block by block.
//!
//! The mirrors have ended, and the destination's exports are still open: neither drive changes. A long
//! pause is what was asked for; packets for the VM are held meanwhile, as far as there is room for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{Reply, Request};
use crate::migrate::node::{make_private_for_now, verify_directory};
use crate::migrate::storage::checksum::{BATCH, BLOCK, Checksummer, differences};
use crate::migrate::storage::export::{Access, Exports};
use crate::migrate::storage::{Side, StorageError};
use crate::nbd::NbdError;
use crate::qmp::Qmp;

use super::{Mirror, MirroredDrive};
use crate::migrate::source::Run;
use crate::migrate::source::arm::Armed;
use crate::migrate::source::peer::{Peer, bad_news};

/// Between two lines about how far the comparison is.
const TELL: Duration = Duration::from_secs(1);

/// The source's NBD server. Set up before the copy, so that what is in its way is found early.
#[derive(Debug)]
pub(super) struct Compared {
    exports: Exports,
    socket: PathBuf,
}

impl Compared {
    pub(super) async fn prepare(qmp: &Qmp, run: &mut Run) -> Result<Self, MigrateError> {
        let directory = verify_directory(run.session);
        let socket = directory.join("nbd");
        make_private_for_now(
            directory,
            "directory of the source's exports",
            &mut run.undo,
        )?;
        let exports = Exports::new(qmp.clone(), Side::Source);
        let close = exports.clone();
        run.undo
            .cleanup("exports of the source's drives", move || close.undo());
        exports.start(socket.clone()).await?;
        Ok(Self { exports, socket })
    }
}

/// Compares every drive, if that was asked for. Equal drives are noted in the report; a difference is an
/// error.
pub(super) async fn verify(
    mirror: &Mirror,
    armed: &mut Armed,
    run: &mut Run,
) -> Result<(), MigrateError> {
    let Some(compared) = &mirror.compared else {
        return Ok(());
    };
    let within = run.config.storage_sync_timeout;
    let peer = armed.prepared.peer.clone();
    let compare = async {
        for drive in &mirror.drives {
            compared.compare(drive, &peer).await?;
        }
        compared.exports.close().await?;
        Ok::<_, MigrateError>(())
    };
    tokio::select! {
        biased;
        over = run.cut_short() => return Err(over),
        notice = armed.prepared.notices.next() => {
            return Err(match bad_news(notice.doing("hear from the destination")?) {
                Some(error) => error,
                None => MigrateError::OutOfStep { what: "the comparison of the drives" },
            });
        }
        compared = compare => compared?,
        () = tokio::time::sleep(within) => {
            return Err(MigrateError::Deadline { what: "the comparison of the drives", within });
        }
    }
    for disk in &mut run.report.disks {
        disk.verified = Some(true);
    }
    Ok(())
}

impl Compared {
    async fn compare(&self, drive: &MirroredDrive, peer: &Peer) -> Result<(), MigrateError> {
        let id = &drive.job.drive;
        let began = Instant::now();
        let mut told = began;
        self.exports
            .add(id, &drive.drive.node, Access::Read)
            .await?;
        let failed = |source: NbdError| StorageError::Compare {
            drive: id.clone(),
            side: Side::Source,
            source: Arc::new(source),
        };
        let mut ours = Checksummer::open(&self.socket, id).await.map_err(failed)?;
        let blocks = drive.drive.description.virtual_size.div_ceil(BLOCK);
        let mut different = Vec::new();
        let mut first = 0;
        while first < blocks {
            let count = BATCH.min(blocks - first);
            let request = Request::Checksums {
                drive: id.clone(),
                first_block: first,
                blocks: count,
            };
            let theirs = peer.ask("compare the drives", request, deadline::VERIFY_BATCH);
            let (theirs, ours) = tokio::join!(theirs, ours.batch(first, count));
            let Reply::Checksums(theirs) = theirs? else {
                return Err(MigrateError::OutOfStep { what: "Checksums" });
            };
            let ours = ours.map_err(failed)?;
            different.extend(differences(first, &ours, &theirs.0));
            first += count;
            if told.elapsed() >= TELL {
                told = Instant::now();
                tracing::info!(
                    drive = id,
                    percent = first * 100 / blocks,
                    different = different.len(),
                    "disk: comparing"
                );
            }
        }
        ours.close().await;
        if !different.is_empty() {
            return Err(StorageError::Differs {
                drive: id.clone(),
                blocks: different.len(),
                offsets: different.iter().take(8).map(|n| n * BLOCK).collect(),
            }
            .into());
        }
        tracing::info!(
            drive = id,
            blocks,
            seconds = began.elapsed().as_secs(),
            "disk: both nodes' are equal"
        );
        Ok(())
    }
}
