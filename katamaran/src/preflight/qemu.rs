//! The VM's QEMU: it is asked, and nothing is set.

use super::check::{Area, Check};
use super::found::Found;
use crate::config::{CommonConfig, PreflightConfig};
use crate::migrate::destination::guest;
use crate::migrate::error::MigrateError;
use crate::migrate::source::prepare;
use crate::migrate::source::storage::copy_mode;
use crate::migrate::storage::drive::Drive;
use crate::migrate::{chain, storage::drive::DEFAULT_DRIVE};
use crate::qmp::command::{
    AnnounceSelf, BlockExportAdd, BlockdevMirror, Capability, CopyMode, JobDismiss, QueryBlock,
    QueryCommands, QueryMigrateCapabilities, QueryRxFilter, QueryStatus, RunState,
};
use crate::qmp::{Command as _, Qmp, QmpError};

const AREA: Area = Area::Qemu;
/// The oldest release that katamaran knows.
const OLDEST: (u32, u32) = (6, 2);
const WHY_QMP: &str = "Give its socket with --qmp.";

/// A QEMU that answers.
pub(super) struct Qemu {
    pub(super) qmp: Qmp,
    /// The drives that a source would mirror; `None` when that is not known.
    pub(super) drives: Option<Vec<Drive>>,
}

pub(super) async fn look(
    config: &PreflightConfig,
    common: &CommonConfig,
    found: &mut Found,
) -> Option<Qemu> {
    if common.qmp.as_os_str().is_empty() {
        if config.is_node_only() {
            return None;
        }
        found.push(Check::unchecked(AREA, "qmp", "no QEMU was named", WHY_QMP));
        return None;
    }
    let qmp = match Qmp::connect(&common.qmp).await {
        Ok(qmp) => qmp,
        Err(error) => {
            found.push(Check::missing(
                AREA,
                "qmp",
                chain(&error),
                unreachable_advice(&error),
            ));
            return None;
        }
    };
    let pid = qmp.peer_pid().map_or(
        "a process that is not visible from here".to_owned(),
        |pid| format!("process {pid}"),
    );
    let text = format!("{} answers, {pid}", common.qmp.display());
    found.push(Check::ok(AREA, "qmp", text));
    found.push(version(&qmp));

    let as_source = match (&config.source, &config.destination) {
        (source, None) => source.is_some(),
        (None, Some(_)) => false,
        // What it is doing tells what it is for.
        (Some(_), Some(_)) => !waits(&qmp).await,
    };
    let mut drives = None;
    if as_source {
        found.push(vm_to_leave(&qmp).await);
        drives = source_drives(common, &qmp, found).await;
    } else {
        found.push(vm_to_come(&qmp).await);
        destination_drives(common, &qmp, found).await;
    }
    let mirrors = !common.shared_storage && drives.as_ref().is_none_or(|d| !d.is_empty());
    let wanted = wanted(config, as_source, mirrors);
    found.push(capabilities(&qmp, &wanted).await);
    found.push(commands(&qmp, as_source, mirrors).await);
    Some(Qemu { qmp, drives })
}

fn unreachable_advice(error: &QmpError) -> String {
    match error {
        QmpError::Connect { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => {
                "Is it the right path, and is QEMU started with -qmp unix:PATH,server=on,wait=off?".into()
            }
            std::io::ErrorKind::ConnectionRefused => {
                "The socket is there, but its QEMU is gone. Start it, or give the socket of the one that runs.".into()
            }
            std::io::ErrorKind::PermissionDenied => "Run it as root, or as QEMU's user.".into(),
            _ => "Give the path of a QMP socket.".into(),
        },
        QmpError::NoGreeting { .. } | QmpError::ConnectDeadline { .. } => {
            "A QMP socket serves one client at a time, and another one has it: a waiting katamaran --mode dest, or what \
             manages the VM. Give QEMU a second -qmp socket for katamaran, or end that client."
                .into()
        }
        _ => "Give the path of a QMP socket.".into(),
    }
}

fn version(qmp: &Qmp) -> Check {
    let v = qmp.version();
    let text = format!("QEMU {}.{}.{}", v.major, v.minor, v.micro);
    if (v.major, v.minor) >= OLDEST {
        return Check::ok(AREA, "version", text);
    }
    let remedy = format!("Use QEMU {}.{} or newer on both nodes.", OLDEST.0, OLDEST.1);
    Check::missing(AREA, "version", text, remedy)
}

async fn waits(qmp: &Qmp) -> bool {
    let status = qmp.execute(QueryStatus).await;
    status.is_ok_and(|status| status.status == RunState::Inmigrate)
}

async fn vm_to_leave(qmp: &Qmp) -> Check {
    match prepare::check_vm_is_free(qmp).await {
        Ok(()) => Check::ok(AREA, "vm", "runs, and can be migrated"),
        Err(error @ MigrateError::NotRunning(_)) => Check::missing(
            AREA,
            "vm",
            chain(&error),
            "Give the QMP socket of the QEMU that runs the VM, or resume it (cont). On the node where it waits for a VM, \
             pass --mode dest.",
        ),
        Err(error) => Check::missing(
            AREA,
            "vm",
            chain(&error),
            "Remove what keeps QEMU from it, or wait until it is over.",
        ),
    }
}

async fn vm_to_come(qmp: &Qmp) -> Check {
    match guest::check_incoming(qmp).await {
        Ok(()) => Check::ok(AREA, "vm", "waits for one to come"),
        Err(error) => Check::missing(
            AREA,
            "vm",
            chain(&error),
            "A destination needs a QEMU that waits. On the node that runs the VM, pass --mode source.",
        ),
    }
}

async fn source_drives(config: &CommonConfig, qmp: &Qmp, found: &mut Found) -> Option<Vec<Drive>> {
    if config.shared_storage {
        let text = "not mirrored (--shared-storage); whether both nodes have the same volumes is proven by the migration";
        found.push(Check::ok(AREA, "drives", text));
        return Some(Vec::new());
    }
    match prepare::find_drives(qmp, config.drive_ids.as_deref()).await {
        Ok(drives) => {
            found.push(Check::ok(AREA, "drives", listed(&drives)));
            Some(drives)
        }
        Err(error) => {
            let remedy = format!(
                "Name all drives that the VM can write to with --drive-id (without it: {DEFAULT_DRIVE}), or pass \
                 --shared-storage if both nodes open the same volumes."
            );
            found.push(Check::missing(AREA, "drives", chain(&error), remedy));
            None
        }
    }
}

fn listed(drives: &[Drive]) -> String {
    if drives.is_empty() {
        return "the VM has none that it can write to".into();
    }
    let each: Vec<String> = drives
        .iter()
        .map(|drive| {
            let d = &drive.description;
            format!("{} ({}, {} MiB)", d.id, d.format, d.virtual_size >> 20)
        })
        .collect();
    format!("to mirror: {}", each.join(", "))
}

/// Which of them are mirrored to, the source says.
async fn destination_drives(config: &CommonConfig, qmp: &Qmp, found: &mut Found) {
    let check = match qmp.execute(QueryBlock).await {
        Err(error) => Check::unchecked(AREA, "drives", chain(&error), "See QEMU's log."),
        Ok(disks) => {
            let writable: Vec<&str> = disks
                .iter()
                .filter(|disk| disk.read_only() == Some(false))
                .map(|disk| disk.best_name())
                .collect();
            let list = match writable.as_slice() {
                [] => "none".to_owned(),
                list => list.join(", "),
            };
            let what = match config.shared_storage {
                true => "shared with the source",
                false => "to be overwritten with the source's",
            };
            Check::ok(AREA, "drives", format!("{what}: {list}"))
        }
    };
    found.push(check);
}

/// The switches that this migration would turn on.
fn wanted(config: &PreflightConfig, as_source: bool, mirrors: bool) -> Vec<Capability> {
    let mut wanted = vec![Capability::Events];
    if !as_source {
        wanted.push(Capability::LateBlockActivate);
    }
    if as_source && mirrors {
        wanted.push(Capability::PauseBeforeSwitchover);
    }
    if let (true, Some(source)) = (as_source, &config.source) {
        if source.multifd_channels > 0 {
            wanted.push(Capability::Multifd);
        }
        if source.auto_converge {
            wanted.push(Capability::AutoConverge);
        }
    }
    wanted
}

async fn capabilities(qmp: &Qmp, wanted: &[Capability]) -> Check {
    let name = "capabilities";
    let list = |capabilities: &[&Capability]| {
        let names: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    let has = match qmp.execute(QueryMigrateCapabilities).await {
        Ok(has) => has,
        Err(error) => return Check::unchecked(AREA, name, chain(&error), "See QEMU's log."),
    };
    let (there, lacking): (Vec<_>, Vec<_>) = wanted
        .iter()
        .partition(|wanted| has.iter().any(|state| state.capability == **wanted));
    if lacking.is_empty() {
        return Check::ok(AREA, name, list(&there));
    }
    let found = format!("this QEMU has no {}", list(&lacking));
    Check::missing(AREA, name, found, "Use a newer QEMU, on both nodes.")
}

async fn commands(qmp: &Qmp, as_source: bool, mirrors: bool) -> Check {
    let name = "commands";
    let known = match qmp.execute(QueryCommands).await {
        Ok(known) => known,
        Err(error) => return Check::unchecked(AREA, name, chain(&error), "See QEMU's log."),
    };
    let needed: &[&str] = match (as_source, mirrors) {
        (true, true) => &[QueryRxFilter::NAME, BlockdevMirror::NAME, JobDismiss::NAME],
        (true, false) => &[QueryRxFilter::NAME],
        (false, true) => &[
            QueryRxFilter::NAME,
            AnnounceSelf::NAME,
            BlockExportAdd::NAME,
        ],
        (false, false) => &[QueryRxFilter::NAME, AnnounceSelf::NAME],
    };
    let lacking: Vec<&str> = needed
        .iter()
        .copied()
        .filter(|name| !known.iter().any(|command| command.name == *name))
        .collect();
    if !lacking.is_empty() {
        let found = format!("this QEMU has no {}", lacking.join(", "));
        return Check::missing(AREA, name, found, "Use a newer QEMU, on both nodes.");
    }
    let ok = Check::ok(AREA, name, needed.join(", "));
    match (as_source && mirrors).then_some(copy_mode(qmp)) {
        None => ok,
        Some(mode) => match mode.await {
            Ok(CopyMode::Background) => Check::ok(
                AREA,
                name,
                format!("{}, block-job-change", needed.join(", ")),
            ),
            Ok(_) => Check::degraded(
                AREA,
                name,
                "this QEMU has no block-job-change (QEMU 8.2)",
                "The guest's writes wait for both nodes from the start of the drives' copy, not only near its end. Use QEMU \
                 8.2 or newer.",
            ),
            Err(error) => Check::unchecked(AREA, name, chain(&error), "See QEMU's log."),
        },
    }
}
