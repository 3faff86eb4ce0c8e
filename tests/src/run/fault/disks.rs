//! What can go wrong with V's disks, and what their mirrors tell.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Fault, Moment};
use crate::lab::{Lab, Qmp};
use crate::run::migration::Migration;
use crate::run::stage::Stage;

/// What takes all the room beside B's images.
const FILLER: &str = "everything-else";

/// Has it happen, if it is about disks.
pub(super) fn strike(fault: Fault, migration: &mut Migration<'_>) -> Result<()> {
    let drives = migration.stage.drives.len();
    match fault {
        Fault::DestinationFull => migration.stage.fill_destination(),
        Fault::WritesFailOnB => inject_errors(&mut migration.stage.qmp_b, drives, "write"),
        Fault::ReadsFailOnA => inject_errors(&mut migration.stage.qmp_a, drives, "read"),
        Fault::ExportStopped => {
            let qmp = &mut migration.stage.qmp_b;
            qmp.command("nbd-server-stop", Value::Null).map(drop)
        }
        Fault::PathSilent => silence_data(&migration.stage.lab),
        _ => Ok(()),
    }
}

/// Whether the mirrors are there.
pub(super) fn has_come(moment: Moment, migration: &mut Migration<'_>) -> Result<bool> {
    let drives = migration.stage.drives.len();
    let qmp = &mut migration.stage.qmp_a;
    Ok(match moment {
        Moment::MirrorStart => !mirrors(qmp)?.is_empty(),
        Moment::MidMirror => mirrors(qmp)?
            .iter()
            .any(|mirror| mirror.offset > mirror.length / 4),
        Moment::Ready => all_ready(qmp, drives)?,
        _ => false,
    })
}

/// The names and drivers of all block nodes that QEMU has, but for those that a fault puts in.
pub(super) fn block_nodes(qmp: &mut Qmp) -> Result<BTreeSet<String>> {
    let nodes = qmp.command("query-named-block-nodes", Value::Null)?;
    let names = nodes.as_array().into_iter().flatten();
    Ok(names
        .filter_map(|node| Some((node["node-name"].as_str()?, node["drv"].as_str()?)))
        .filter(|(name, _)| !name.starts_with("broken"))
        .map(|(name, driver)| format!("{name} ({driver})"))
        .collect())
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
        let path = b.with_file_name(FILLER);
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

    /// Makes room again, as somebody does whose VM QEMU has stopped because of it (`werror=enospc`, QEMU's default).
    pub(super) fn free_destination(&mut self) -> Result<()> {
        let [_, b] = self.drives.first().context("V has no disk")?;
        std::fs::remove_file(b.with_file_name(FILLER)).context("make room")?;
        // A QEMU that has ended has no state.
        let status = self.qmp_b.command("query-status", Value::Null);
        if status.is_ok_and(|status| status["status"] == "io-error") {
            self.qmp_b.command("cont", Value::Null)?;
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
pub(in crate::run) struct Mirror {
    pub(in crate::run) offset: u64,
    pub(in crate::run) length: u64,
    pub(in crate::run) ready: bool,
}

impl Mirror {
    /// Bytes that the destination does not have yet.
    pub(in crate::run) fn pending(&self) -> u64 {
        self.length.saturating_sub(self.offset)
    }
}

/// All mirror jobs of a QEMU.
pub(in crate::run) fn mirrors(qmp: &mut Qmp) -> Result<Vec<Mirror>> {
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
pub(in crate::run) fn all_ready(qmp: &mut Qmp, drives: usize) -> Result<bool> {
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
