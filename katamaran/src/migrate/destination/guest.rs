//! The incoming VM: compared with the source's, loaded, run, or destroyed.

use crate::config::CommonConfig;
use crate::deadline;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{Resumed, VmDescription};
use crate::migrate::node::{Node, refused};
use crate::migrate::storage::drive::Drive;
use crate::net::link::MacAddr;
use crate::qmp::command::{
    AnnounceSelf, Capability, CapabilityState, Cont, MigrateIncoming, MigrateSetCapabilities,
    MigrateSetParameters, MigrationParameters, QueryMigrate, QueryStatus, Quit, RunState, Stop,
};
use crate::qmp::{EventName, Qmp};
use crate::wall_clock::now_us;

use super::delivery::{self, Delivery};
use super::storage;

/// QEMU must wait for a VM and run none. `stop` while it waits clears its autostart
/// (`qmp_stop()`, monitor/qmp-cmds.c), so that it can't run the VM before COMMIT, with or without `-S`.
pub(crate) async fn must_be_incoming(node: &Node) -> Result<(), MigrateError> {
    check_incoming(&node.qmp).await?;
    node.qmp
        .execute(Stop)
        .await
        .doing("keep QEMU from starting the VM by itself")?;
    Ok(())
}

/// QEMU waits for a VM. Changes nothing.
pub(crate) async fn check_incoming(qmp: &Qmp) -> Result<(), MigrateError> {
    let status = qmp
        .execute(QueryStatus)
        .await
        .doing("ask for QEMU's state")?;
    if status.status != RunState::Inmigrate {
        return Err(refused(format!(
            "QEMU is {}, not waiting for a VM: start it with the source's options and `-incoming defer`",
            status.status
        )));
    }
    let migration = qmp
        .execute(QueryMigrate)
        .await
        .doing("ask for a migration")?;
    if migration.socket_address.is_some_and(|at| !at.is_empty()) {
        return Err(refused(
            "QEMU listens for a VM by itself, and takes it from nobody else: start it with `-incoming defer`, not with an address",
        ));
    }
    Ok(())
}

/// How the VM's network cards differ.
///
/// # Errors
/// Those here can't be told.
fn compare_nics(node: &Node, theirs: &VmDescription) -> Result<Vec<String>, MigrateError> {
    let ours = node.nics.iter().map(|nic| Ok((nic.mac()?, nic)));
    let ours = ours.collect::<Result<Vec<_>, MigrateError>>()?;
    let mut problems = Vec::new();
    let one_each = ours.len() == 1 && theirs.more_nics.is_empty();
    for nic in theirs.nics() {
        let mac = MacAddr(nic.mac);
        let same = ours.iter().find(|(ours, _)| one_each || *ours == mac);
        if let Some((ours, _)) = same.filter(|(ours, _)| *ours != mac) {
            problems.push(format!(
                "the VM's Ethernet address is {mac} on the source and {ours} here"
            ));
        }
        match same {
            None => problems.push(format!("the VM has a NIC {mac} on the source, and none here")),
            Some((_, ours)) if ours.tap.mtu < nic.tap_mtu => problems.push(format!(
                "the VM's tap has MTU {} on the source and {} ({}) here: full packets would be dropped",
                nic.tap_mtu, ours.tap.mtu, ours.tap.name
            )),
            Some(_) => {}
        }
    }
    for (mac, nic) in &ours {
        if !one_each && !theirs.nics().any(|nic| MacAddr(nic.mac) == *mac) {
            problems.push(format!(
                "the VM has a NIC {mac} ({}) here, and none on the source",
                nic.tap.name
            ));
        }
    }
    Ok(problems)
}

/// What must be the same on both nodes, compared before a byte moves. All differences at once. Returns
/// the drives that the source's are mirrored to.
pub(crate) async fn compare(
    node: &Node,
    theirs: &VmDescription,
    config: &CommonConfig,
) -> Result<Vec<Drive>, MigrateError> {
    let mut problems = Vec::new();
    problems.extend(compare_nics(node, theirs)?);
    let (machine, ram, vcpus) = node.shape().await;
    if let (Some(theirs), Some(ours)) = (&theirs.machine_type, &machine)
        && theirs != ours
    {
        problems.push(format!(
            "the machine type is {theirs} on the source and {ours} here"
        ));
    }
    if let (Some(theirs), Some(ours)) = (theirs.ram_bytes, ram)
        && theirs != ours
    {
        problems.push(format!(
            "the VM has {} MiB of RAM on the source and {} MiB here",
            theirs >> 20,
            ours >> 20
        ));
    }
    if let (Some(theirs), Some(ours)) = (theirs.vcpus, vcpus)
        && theirs != ours
    {
        problems.push(format!(
            "the VM has {theirs} vCPUs on the source and {ours} here"
        ));
    }
    let ours = node.qemu_version();
    if ours < theirs.qemu_version {
        tracing::warn!(source = ?theirs.qemu_version, here = ?ours, "QEMU is older here than on the source");
    }
    let named = config.drive_ids.as_deref();
    let drives = match storage::compare(node, theirs, config.shared_storage, named).await {
        Ok(drives) => drives,
        Err(MigrateError::Refused { problems: more }) => {
            problems.extend(more);
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    if problems.is_empty() {
        Ok(drives)
    } else {
        Err(MigrateError::Refused { problems })
    }
}

/// Lets QEMU listen for RAM at `uri`.
pub(crate) async fn listen(
    qmp: &Qmp,
    uri: String,
    multifd_channels: u8,
) -> Result<(), MigrateError> {
    let capabilities = vec![
        CapabilityState {
            capability: Capability::Events,
            state: true,
        },
        CapabilityState {
            capability: Capability::Multifd,
            state: multifd_channels > 0,
        },
        // Without it, QEMU would take its images for writing when the VM has arrived, before COMMIT.
        CapabilityState {
            capability: Capability::LateBlockActivate,
            state: true,
        },
    ];
    qmp.execute(MigrateSetCapabilities { capabilities })
        .await
        .doing("set migration capabilities")?;
    if multifd_channels > 0 {
        let parameters = MigrationParameters {
            multifd_channels: Some(multifd_channels.into()),
            ..MigrationParameters::default()
        };
        qmp.execute(MigrateSetParameters::from(parameters))
            .await
            .doing("set migration parameters")?;
    }
    qmp.execute(MigrateIncoming { uri })
        .await
        .doing("let QEMU listen for RAM")?;
    Ok(())
}

/// COMMIT: runs the VM, then lets the held packets go. "Completed" is not "running" (a failed block
/// activation leaves QEMU paused), so RESUME is waited for.
pub(crate) async fn run(node: &Node, deliveries: &[Delivery]) -> Result<Resumed, MigrateError> {
    let mut events = node.qmp.subscribe();
    // Asked for while QEMU is busy with it.
    let (told, held) = tokio::join!(node.qmp.execute(Cont), delivery::held(deliveries));
    told.doing("run the VM")?;
    let event = events
        .wait_for(|e| e.name == EventName::Resume, deadline::QMP_RUN_STATE)
        .await
        .doing("see the VM run")?;
    for delivery in deliveries {
        delivery.release().await?;
    }
    let resumed_at_us = event
        .timestamp_us
        .and_then(|us| i64::try_from(us).ok())
        .unwrap_or_else(now_us);
    // Without a plug the held packets wait for QEMU itself: released is when it runs.
    let released_at_us = match deliveries.first().map(|d| d.buffer) {
        Some(crate::migrate::message::Buffer::Plug { .. }) => now_us(),
        _ => resumed_at_us,
    };
    Ok(Resumed {
        resumed_at_us,
        released_at_us,
        held,
    })
}

/// Tells the switches where the VM is: 5 rounds, 50 ms first, 100 ms more each time, 550 ms at most.
pub(crate) async fn announce(qmp: &Qmp) -> Result<(), MigrateError> {
    qmp.execute(AnnounceSelf::default())
        .await
        .doing("announce the VM (announce-self)")
        .map(|_| ())
}

/// Destroys the incoming state: ends QEMU. That it is gone already is success.
pub(crate) async fn destroy(qmp: &Qmp) -> Result<(), String> {
    match qmp.execute(Quit).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_closed() => Ok(()),
        Err(error) => Err(crate::migrate::error::chain(&error)),
    }
}
