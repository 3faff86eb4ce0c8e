//! What can go wrong with the disks of a migration, and when.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::katamaran::Role;
use super::migration::Migration;
use super::stage::Stage;
use crate::lab::{Lab, Node, Qmp};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// katamaran on B is killed.
    DestinationKilled,
    /// The QEMU on B is killed.
    DestinationQemuKilled,
    /// B's cable is pulled.
    LinkCut,
    /// The file system of B's images is full from now on.
    DestinationFull,
    /// Every write to B's images fails.
    WritesFailOnB,
    /// Every read from A's images fails.
    ReadsFailOnA,
    /// B's QEMU stops to serve its disks.
    ExportStopped,
    /// What carries the mirrors goes silent, and the session between the nodes does not.
    PathSilent,
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The first mirror has been started.
    MirrorStart,
    /// A good part of a disk has been copied.
    MidMirror,
    /// Every mirror is ready.
    Ready,
    /// RAM is being copied.
    RamCopy,
    /// V has just been stopped.
    Stopped,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DestinationKilled,
        Self::DestinationQemuKilled,
        Self::LinkCut,
        Self::DestinationFull,
        Self::WritesFailOnB,
        Self::ReadsFailOnA,
        Self::ExportStopped,
        Self::PathSilent,
    ];

    /// Makes it happen.
    ///
    /// # Errors
    ///
    /// When it can't be done, for one because it has been done before.
    pub fn strike(self, migration: &mut Migration<'_>) -> Result<()> {
        match self {
            Self::DestinationKilled => migration.side(Role::Dest).process().kill(),
            Self::DestinationQemuKilled => migration.stage.guest_b.process().kill(),
            Self::LinkCut => migration.stage.lab.cut_link(Node::B)?,
            Self::DestinationFull => migration.stage.fill_destination()?,
            Self::WritesFailOnB => {
                let drives = migration.stage.drives.len();
                inject_errors(&mut migration.stage.qmp_b, drives, "write")?;
            }
            Self::ReadsFailOnA => {
                let drives = migration.stage.drives.len();
                inject_errors(&mut migration.stage.qmp_a, drives, "read")?;
            }
            Self::ExportStopped => {
                let qmp = &mut migration.stage.qmp_b;
                qmp.command("nbd-server-stop", Value::Null)?;
            }
            Self::PathSilent => silence_data(&migration.stage.lab)?,
        }
        Ok(())
    }
}

impl Moment {
    /// All of them, in the order in which they come.
    pub const ALL: [Self; 5] = [
        Self::MirrorStart,
        Self::MidMirror,
        Self::Ready,
        Self::RamCopy,
        Self::Stopped,
    ];

    /// Looks until it has come.
    ///
    /// # Errors
    ///
    /// When the migration ends before.
    pub fn wait(self, migration: &mut Migration<'_>) -> Result<()> {
        migration.look_until(&format!("{self:?}"), |migration| {
            let drives = migration.stage.drives.len();
            let qmp = &mut migration.stage.qmp_a;
            Ok(match self {
                Self::MirrorStart => !mirrors(qmp)?.is_empty(),
                Self::MidMirror => mirrors(qmp)?
                    .iter()
                    .any(|mirror| mirror.offset > mirror.length / 4),
                Self::Ready => all_ready(qmp, drives)?,
                Self::RamCopy => qmp.command("query-migrate", Value::Null)?["status"] == "active",
                Self::Stopped => migration.timeline.stop_ns.is_some(),
            })
        })
    }
}

impl Stage {
    /// Leaves no room on the file system of B's images.
    ///
    /// # Errors
    ///
    /// When V has no disk, or the one that A uses as well.
    pub fn fill_destination(&self) -> Result<()> {
        let [a, b] = self.drives.first().context("V has no disk")?;
        ensure!(a != b, "the disk is A's as well");
        let dir = b.parent().context("an image is in a directory")?;
        let path = dir.join("everything-else");
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let piece = vec![1; 1 << 16];
        // Writing less and less, to the last page.
        let mut length = piece.len();
        while length > 0 {
            match file.write(&piece[..length]) {
                Ok(written) if written > 0 => {}
                _ => length /= 2,
            }
        }
        Ok(())
    }
}

/// Drops every packet of the connections to B that have carried data: the session's own has not.
fn silence_data(lab: &Lab) -> Result<()> {
    let filter = ["-tinH", "state", "established", "dport", "=", ":7482"];
    let sockets = lab.network().a.command("ss", &filter)?;
    let ports = busy_ports(&sockets);
    ensure!(!ports.is_empty(), "nothing was sent to B yet:\n{sockets}");
    for port in ports {
        lab.drop_in_fabric(&format!("tcp sport {port} tcp dport 7482"))?;
        lab.drop_in_fabric(&format!("tcp sport 7482 tcp dport {port}"))?;
    }
    Ok(())
}

/// The local ports of the sockets in the output of `ss -tinH` that have sent more than a session does.
fn busy_ports(sockets: &str) -> Vec<u16> {
    const MUCH: u64 = 1 << 20;
    let mut ports = Vec::new();
    let mut local: Option<u16> = None;
    for line in sockets.lines() {
        let mut words = line.split_whitespace();
        if line.starts_with(char::is_whitespace) {
            let sent = words.find_map(|word| word.strip_prefix("bytes_sent:")?.parse().ok());
            ports.extend(
                local
                    .take()
                    .filter(|_| sent.is_some_and(|sent: u64| sent > MUCH)),
            );
        } else {
            local = words
                .nth(2)
                .and_then(|address| address.rsplit(':').next()?.parse().ok());
        }
    }
    ports
}

/// A mirror job, as QEMU shows it.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) ready: bool,
}

impl Mirror {
    /// Bytes that the destination does not have yet.
    pub(super) fn pending(&self) -> u64 {
        self.length.saturating_sub(self.offset)
    }
}

/// All mirror jobs of a QEMU.
pub(super) fn mirrors(qmp: &mut Qmp) -> Result<Vec<Mirror>> {
    let jobs = qmp.command("query-block-jobs", Value::Null)?;
    let jobs = jobs.as_array().context("jobs come as a list")?;
    Ok(jobs
        .iter()
        .filter(|job| job["type"] == "mirror")
        .map(|job| Mirror {
            offset: job["offset"].as_u64().unwrap_or(0),
            length: job["len"].as_u64().unwrap_or(0),
            ready: job["ready"] == true,
        })
        .collect())
}

/// Whether every drive has a mirror and all are ready.
pub(super) fn all_ready(qmp: &mut Qmp, drives: usize) -> Result<bool> {
    let mirrors = mirrors(qmp)?;
    Ok(mirrors.len() >= drives && mirrors.iter().all(|mirror| mirror.ready))
}

/// Has every read or every write of the drives fail from now on.
///
/// QEMU's `blkdebug` is put between the image's format and its file. That takes names for both:
/// [`crate::lab::LabConfig::named_drives`].
fn inject_errors(qmp: &mut Qmp, drives: usize, what: &str) -> Result<()> {
    for drive in 0..drives {
        let broken = format!("broken{drive}");
        qmp.command(
            "blockdev-add",
            json!({
                "driver": "blkdebug",
                "node-name": broken,
                "image": format!("file{drive}"),
                "inject-error": [{ "event": "none", "iotype": what, "errno": libc::EIO }],
            }),
        )?;
        // What is added to a QEMU that waits for a migration is inactive, and is not taken as the file of
        // what is active already. An export makes it active, and only needs to be there for a moment.
        let export = json!({ "type": "nbd", "id": broken, "node-name": broken, "name": broken });
        let exported = qmp.command("block-export-add", export).is_ok();
        let node = json!({
            "driver": "raw",
            "node-name": format!("disk{drive}"),
            "file": broken,
        });
        let reopened = qmp.command("blockdev-reopen", json!({ "options": [node] }));
        if exported {
            qmp.command("block-export-del", json!({ "id": broken }))?;
        }
        reopened.context("put the errors in place")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_that_carry_data_are_told_from_the_session() {
        let sockets = "0      0      10.0.1.2:40000      10.0.2.2:7482
\t cubic wscale:7,7 bytes_sent:3000 bytes_acked:3000
0      0      [::ffff:10.0.1.2]:40001      [::ffff:10.0.2.2]:7482
\t cubic wscale:7,7 bytes_sent:20971520 bytes_acked:20971520
";
        assert_eq!(busy_ports(sockets), [40001]);
    }
}
