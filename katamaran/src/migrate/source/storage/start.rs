//! Starts the mirrors: the destination's exports, then a connection to them, a node and a job for each drive.

use std::time::Instant;

use crate::control::Preamble;
use crate::deadline;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{Reply, Request};
use crate::migrate::storage::drive::Drive;
use crate::migrate::storage::job::JobTracker;
use crate::migrate::storage::{Mirrored, PREFIX, qemu_id, share};
use crate::qmp::Qmp;
use crate::qmp::command::{BlockdevAddNbd, BlockdevMirror, CopyMode, MirrorSync, QueryCommands};
use crate::relay::HandedStreams;

use super::residue::{Residue, remove_all};
use super::verify::Compared;
use super::watch::Watch;
use super::{Mirror, MirroredDrive, execute, for_drive};
use crate::migrate::source::Run;
use crate::migrate::source::arm::Armed;
use crate::migrate::source::streams::to_destination;

/// The command that makes a background mirror a write-blocking one (QEMU 8.2).
const CHANGES_MODE: &str = "block-job-change";

pub(super) async fn start(
    armed: &Armed,
    run: &mut Run,
    drives: Vec<Drive>,
) -> Result<Mirror, MigrateError> {
    let qmp = &armed.prepared.node.qmp;
    let mode = copy_mode(qmp).await?;
    remove_all(qmp, &run.diary)
        .await
        .doing("remove mirrors of an earlier run")?;
    match armed
        .prepared
        .peer
        .ask(
            "have the destination export its drives",
            Request::Export,
            deadline::EXPORT,
        )
        .await?
    {
        Reply::Exported => {}
        _ => return Err(MigrateError::OutOfStep { what: "Export" }),
    }

    let streams = HandedStreams::new(to_destination(armed, run.session, Preamble::nbd));
    let path = streams.status().clone();
    let residue = Residue::new(qmp.clone(), streams, run.diary.clone());
    let undo = residue.clone();
    run.undo
        .cleanup("mirrors of the drives", move || undo.remove());

    let compared = match run.config.verify_storage {
        true => Some(Compared::prepare(qmp, run).await?),
        false => None,
    };
    let limit = run.config.disk_bandwidth;
    let speed = share(limit, drives.len());
    let mut mirrored = Vec::with_capacity(drives.len());
    for (index, drive) in drives.into_iter().enumerate() {
        // A node's name has 31 characters at most; a drive's may be longer.
        let target = format!("{PREFIX}target{index}");
        let id = drive.description.id.clone();
        let job = Mirrored {
            job: qemu_id(&id),
            drive: id.clone(),
        };
        connect(qmp, &residue, &job, &target).await?;
        let add = BlockdevAddNbd::new(target.clone(), target.clone(), id);
        execute(qmp, &job, "attach the destination's drive", add).await?;
        mirrored.push(MirroredDrive { drive, job, target });
    }
    let events = qmp.subscribe();
    let began = Instant::now();
    for drive in &mirrored {
        let start = BlockdevMirror::new(
            drive.job.job.clone(),
            drive.drive.node.clone(),
            drive.target.clone(),
            MirrorSync::whole(&drive.drive.description.format),
            speed,
            mode.clone(),
        );
        execute(qmp, &drive.job, "start to mirror it", start).await?;
    }
    let timeout = run.config.storage_sync_timeout;
    let jobs = mirrored
        .iter()
        .map(|drive| JobTracker::new(drive.job.clone(), timeout))
        .collect();
    Ok(Mirror {
        qmp: qmp.clone(),
        drives: mirrored,
        watch: Watch::start(qmp.clone(), events, path, jobs, began),
        residue,
        compared,
        mode,
        limit,
        began,
    })
}

/// Hands QEMU a connection to the destination's exports, under the name of the node that will use it.
async fn connect(
    qmp: &Qmp,
    residue: &Residue,
    job: &Mirrored,
    target: &str,
) -> Result<(), MigrateError> {
    let doing = "connect it to the destination";
    let stream = residue.open_stream().await.doing(doing)?;
    for_drive(qmp.hand_over(target.to_owned(), stream).await, job, doing)
}

/// A QEMU that can't change a mirror's mode gets the right one from the start.
pub(crate) async fn copy_mode(qmp: &Qmp) -> Result<CopyMode, MigrateError> {
    let commands = qmp
        .execute(QueryCommands)
        .await
        .doing("ask which commands QEMU has")?;
    if commands.iter().any(|c| c.name == CHANGES_MODE) {
        return Ok(CopyMode::Background);
    }
    tracing::info!(
        qemu = %qmp.version(),
        "this QEMU can't change a mirror's mode: the guest's writes wait for both nodes from the start"
    );
    Ok(CopyMode::WriteBlocking)
}
