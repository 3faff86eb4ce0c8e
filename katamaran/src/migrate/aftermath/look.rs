//! Looks for what a dead session has left. Changes nothing.

use std::path::PathBuf;

use super::decide::{Facts, QemuFacts};
use crate::ebpf::{self, LeftBehind};
use crate::journal::{Header, Story, Tap};
use crate::migrate::error::chain;
use crate::migrate::node::{relay_directory, verify_directory};
use crate::migrate::storage::PREFIX;
use crate::net::names::{QDISC_MAJOR, detour_link, session_link};
use crate::net::{NetNs, Netlink};
use crate::qmp::command::{
    QueryBlockExports, QueryBlockJobs, QueryMigrate, QueryNamedBlockNodes, QueryStatus,
};
use crate::qmp::{Qmp, QmpError};
use crate::role::Role;

/// What was found, and the ways to it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) facts: Facts,
    /// The QEMU that the session used.
    pub(super) qmp: Option<Qmp>,
    /// Where katamaran ran.
    pub(super) netns: Option<NetNs>,
    /// The taps that exist.
    pub(super) taps: Vec<SeenTap>,
}

/// One of the VM's taps.
#[derive(Debug)]
pub(super) struct SeenTap {
    /// Which of [`Header::taps`].
    pub(super) nic: usize,
    pub(super) index: u32,
    /// Its namespace, and the way to it.
    pub(super) netns: NetNs,
    pub(super) netlink: Netlink,
    /// The length of its ring.
    ring: u32,
}

/// Looks.
///
/// # Errors
/// Something can't be looked at: then nothing may be done either.
pub(super) async fn look(story: &Story) -> Result<Seen, String> {
    let header = &story.header;
    let qmp = find_qemu(header).await?;
    let qemu = match &qmp {
        Some(qmp) => Some(ask(qmp).await.map_err(|e| chain(&e))?),
        None => None,
    };
    let netns = NetNs::by_inode(header.netns);
    let mut taps = Vec::new();
    for (nic, tap) in header.taps().enumerate() {
        taps.extend(find_tap(nic, tap).await?);
    }
    let mut plug = false;
    for tap in &taps {
        plug |= has_plug(&tap.netlink, tap.index).await;
    }
    let mut rings = vec![None; header.taps().count()];
    for tap in &taps {
        rings[tap.nic] = Some(tap.ring);
    }
    let facts = Facts {
        qemu,
        programs: has_programs(header)?,
        retained: !taps.is_empty() && has_retained(header)?,
        devices: match &netns {
            Some(netns) => find_devices(netns, header).await?,
            None => Vec::new(),
        },
        plug,
        rings,
        directories: directories(header),
    };
    Ok(Seen {
        facts,
        qmp,
        netns,
        taps,
    })
}

/// `None` when that QEMU is gone, whatever serves its socket now.
async fn find_qemu(header: &Header) -> Result<Option<Qmp>, String> {
    match header.qemu {
        Some(qemu) if !qemu.exists() => return Ok(None),
        Some(_) => {}
        None if !header.qmp.exists() => return Ok(None),
        None => {
            return Err(format!(
                "which process the QEMU at {} was could not be told when the migration began, so it is not touched",
                header.qmp.display()
            ));
        }
    }
    let qmp = Qmp::connect(&header.qmp).await.map_err(|error| {
        format!(
            "its QEMU lives and can't be asked at {}: {}",
            header.qmp.display(),
            chain(&error)
        )
    })?;
    let pid = qmp.peer_pid().and_then(|pid| i32::try_from(pid).ok());
    if pid == header.qemu.map(|qemu| qemu.pid) {
        return Ok(Some(qmp));
    }
    Err(format!(
        "its QEMU lives, and another process serves {}",
        header.qmp.display()
    ))
}

async fn ask(qmp: &Qmp) -> Result<QemuFacts, QmpError> {
    let status = qmp.execute(QueryStatus).await?;
    let migration = qmp.execute(QueryMigrate).await?;
    let jobs = qmp.execute(QueryBlockJobs).await?;
    let nodes = qmp.execute(QueryNamedBlockNodes { flat: true }).await?;
    let exports = qmp.execute(QueryBlockExports).await?;
    let is_ours = |name: &str| name.starts_with(PREFIX);
    let mut nodes = nodes.iter().filter_map(|node| node.node_name.as_deref());
    Ok(QemuFacts {
        status: status.status,
        running: status.running,
        migration: migration.status,
        mirrors: jobs.iter().any(|job| is_ours(&job.device)) || nodes.any(is_ours),
        exports: exports.iter().any(|export| is_ours(&export.id)),
    })
}

/// `None` where it is gone, or another has its place.
async fn find_tap(nic: usize, tap: &Tap) -> Result<Option<SeenTap>, String> {
    let Some(netns) = NetNs::by_inode(tap.netns) else {
        return Ok(None);
    };
    let netlink = netns.netlink().map_err(|e| chain(&e))?;
    match netlink.link_by_index(tap.index).await {
        Ok(link) if link.name == tap.name => Ok(Some(SeenTap {
            nic,
            index: tap.index,
            netns,
            netlink,
            ring: link.txqlen,
        })),
        Ok(_) => Ok(None),
        Err(error) if error.already_gone() => Ok(None),
        Err(error) => Err(chain(&error)),
    }
}

/// Whether our plug is there. A device that is down shows none.
async fn has_plug(netlink: &Netlink, tap: u32) -> bool {
    netlink
        .root_qdisc(tap)
        .await
        .is_ok_and(|root| root.kind == "plug" && root.major == QDISC_MAJOR)
}

fn has_programs(header: &Header) -> Result<bool, String> {
    let stale = ebpf::stale_roles().map_err(|e| chain(&e))?;
    Ok(header.ids().any(|id| stale.contains(&(id, header.role))))
}

fn has_retained(header: &Header) -> Result<bool, String> {
    if header.role != Role::Source {
        return Ok(false);
    }
    for id in header.ids() {
        if LeftBehind::find(id).map_err(|e| chain(&e))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn find_devices(netns: &NetNs, header: &Header) -> Result<Vec<String>, String> {
    let names = |id| match header.role {
        Role::Source => vec![session_link(Role::Source, id), detour_link(id)],
        Role::Destination => vec![session_link(Role::Destination, id)],
    };
    let candidates = header.ids().flat_map(names);
    let netlink = netns.netlink().map_err(|e| chain(&e))?;
    let mut there = Vec::new();
    for name in candidates {
        match netlink.link_by_name(&name).await {
            Ok(_) => there.push(name),
            Err(error) if error.already_gone() => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    Ok(there)
}

fn directories(header: &Header) -> Vec<PathBuf> {
    let candidates = match header.role {
        Role::Source => vec![
            relay_directory(header.session, Role::Source),
            verify_directory(header.session),
        ],
        Role::Destination => vec![relay_directory(header.session, Role::Destination)],
    };
    candidates
        .into_iter()
        .filter(|path| path.exists())
        .collect()
}
