//! Prepare: look at everything that could make the migration impossible, on both nodes, and change
//! nothing.

use std::net::{IpAddr, SocketAddr};

use crate::config::TunnelMode;
use crate::control::{Client, Dialer, Notices, Preamble, Timing, plaintext};
use crate::deadline;
use crate::ebpf;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{
    MigrationProtocol, PROTOCOL, Prepared as PeerPrepared, Reply, Request, Storage, Tunnel,
    VXLAN_PORT, VmDescription,
};
use crate::migrate::node::{Node, encapsulation_overhead, refused};
use crate::migrate::storage::PREFIX;
use crate::migrate::storage::drive::{self, Drive};
use crate::net::link::{LinkInfo, MacAddr};
use crate::net::route::Underlay;
use crate::qmp::command::{self, RunState};

use super::Run;
use super::peer::Peer;

/// Both nodes have been looked at; nothing has been changed.
pub(crate) struct Prepared {
    pub(crate) node: Node,
    pub(crate) peer: Peer,
    pub(crate) notices: Notices<MigrationProtocol>,
    pub(crate) mac: MacAddr,
    /// The device that leads to the VM.
    pub(crate) hook: LinkInfo,
    /// How to reach the destination, one per family.
    pub(crate) underlays: Vec<Underlay>,
    pub(crate) tunnel: Tunnel,
    /// The drives to mirror.
    pub(crate) drives: Vec<Drive>,
    /// Where streams of RAM and of drives are dialled.
    pub(crate) dialer: Dialer,
}

pub(crate) async fn prepare(run: &mut Run) -> Result<Prepared, MigrateError> {
    ebpf::object_state().doing("look at the eBPF programs")?;
    let config = &run.config;
    let node = Node::open(&config.common).await?;
    check_vm_is_free(&node).await?;
    let mac = node.vm_mac().await?;
    let hook = find_hook(run, &node, mac).await?;
    let underlays = find_underlays(run, &node).await?;
    let tunnel = choose_tunnel(run, &node, &underlays)?;
    let drives = find_drives(run, &node).await?;

    let destination = SocketAddr::new(config.dest_ips[0], config.common.port);
    let dialer = Dialer::new(destination, plaintext());
    let stream = dialer
        .dial(Preamble::control(run.session))
        .await
        .map_err(|error| MigrateError::Connect(Box::new(error)))?;
    let (client, notices) = Client::start(stream, Timing::default());
    let peer = Peer::new(client);
    greet(&peer).await?;
    let theirs = describe_vm(run, &node, &peer, mac, &drives).await?;
    tracing::info!(
        tap = %node.tap.name,
        hook = %hook.name,
        destination = %destination,
        destination_tap = %theirs.tap,
        destination_kernel = %theirs.kernel,
        tunnel = ?tunnel,
        drives = drives.len(),
        "both nodes are ready"
    );
    Ok(Prepared {
        node,
        peer,
        notices,
        mac,
        hook,
        underlays,
        tunnel,
        drives,
        dialer,
    })
}

async fn check_vm_is_free(node: &Node) -> Result<(), MigrateError> {
    let status = node
        .qmp
        .execute(command::QueryStatus)
        .await
        .doing("ask for the VM's state")?;
    if status.status != RunState::Running {
        return Err(MigrateError::NotRunning(status.status.to_string()));
    }
    let migration = node
        .qmp
        .execute(command::QueryMigrate)
        .await
        .doing("ask for a migration")?;
    if let Some(reasons) = migration.blocked_reasons.filter(|r| !r.is_empty()) {
        return Err(refused(format!(
            "QEMU can't migrate this VM: {}",
            reasons.join("; ")
        )));
    }
    match migration.status {
        None => Ok(()),
        Some(status) if status.is_final() || status == command::MigrationStatus::None => Ok(()),
        Some(status) => Err(refused(format!(
            "the VM is being migrated already (QEMU says {status})"
        ))),
    }
}

/// The drives to mirror, none of which may be busy with something else.
async fn find_drives(run: &Run, node: &Node) -> Result<Vec<Drive>, MigrateError> {
    let config = &run.config.common;
    if config.shared_storage {
        return Ok(Vec::new());
    }
    let disks = node
        .qmp
        .execute(command::QueryBlock)
        .await
        .doing("ask for the VM's drives")?;
    let drives = drive::choose(config.drive_ids.as_deref(), &disks)
        .map_err(|problems| MigrateError::Refused { problems })?;
    let jobs = node
        .qmp
        .execute(command::QueryBlockJobs)
        .await
        .doing("ask for block jobs")?;
    // Those of an earlier run of ours are removed before new ones are started.
    let others: Vec<String> = jobs
        .iter()
        .filter(|job| !job.device.starts_with(PREFIX))
        .map(|job| format!("{} ({}, {})", job.device, job.kind, job.status))
        .collect();
    if !drives.is_empty() && !others.is_empty() {
        return Err(refused(format!(
            "QEMU runs block jobs: {}; wait for them or cancel them, then retry",
            others.join(", ")
        )));
    }
    Ok(drives)
}

async fn find_hook(run: &Run, node: &Node, mac: MacAddr) -> Result<LinkInfo, MigrateError> {
    if let Some(name) = &run.config.redirect_dev {
        return node
            .netlink
            .link_by_name(name)
            .await
            .doing("look at --redirect-dev");
    }
    let mut hook: Option<LinkInfo> = None;
    for address in &run.config.vm_ips {
        let towards = node
            .netlink
            .towards_vm(*address, Some(mac))
            .await
            .doing("find the device that leads to the VM (or name it with --redirect-dev)")?;
        match &hook {
            Some(known) if known.index != towards.device.index => {
                return Err(refused(format!(
                    "the VM's addresses lead to different devices ({} and {}): name one with --redirect-dev",
                    known.name, towards.device.name
                )));
            }
            _ => hook = Some(towards.device),
        }
    }
    hook.ok_or_else(|| refused("--vm-ip is empty"))
}

async fn find_underlays(run: &Run, node: &Node) -> Result<Vec<Underlay>, MigrateError> {
    let mut underlays = Vec::new();
    for peer in &run.config.dest_ips {
        let underlay = node
            .netlink
            .underlay(*peer)
            .await
            .doing("find the way to --dest-ip")?;
        if underlay.local == *peer {
            return Err(refused(format!(
                "--dest-ip {peer} is an address of this node"
            )));
        }
        underlays.push(underlay);
    }
    Ok(underlays)
}

/// One path for all packets of the VM: two paths of different speed would reorder them.
fn choose_tunnel(run: &Run, node: &Node, underlays: &[Underlay]) -> Result<Tunnel, MigrateError> {
    let too_big: Vec<String> = run
        .config
        .vm_ips
        .iter()
        .filter_map(|vm| {
            let underlay = underlays
                .iter()
                .find(|u| u.peer.is_ipv4() == vm.is_ipv4())?;
            let (mtu, overhead) = (node.tap.mtu, encapsulation_overhead(vm));
            (mtu + overhead > underlay.mtu).then(|| {
                format!(
                    "{mtu} (MTU of {}) + {overhead} (outer header) > {} (path to {})",
                    node.tap.name, underlay.mtu, underlay.peer
                )
            })
        })
        .collect();
    match run.config.common.tunnel {
        TunnelMode::None => Ok(Tunnel::None),
        TunnelMode::Vxlan => Ok(Tunnel::Vxlan { port: VXLAN_PORT }),
        TunnelMode::Auto | TunnelMode::Ipip if too_big.is_empty() => Ok(Tunnel::Ip),
        TunnelMode::Auto => {
            tracing::info!(
                reason = too_big.join("; "),
                "full packets do not fit with IPIP: using vxlan"
            );
            Ok(Tunnel::Vxlan { port: VXLAN_PORT })
        }
        TunnelMode::Ipip => Err(refused(format!(
            "--tunnel-mode ipip: a full packet does not fit: {}; use auto or vxlan, which fragments the outer packet",
            too_big.join("; ")
        ))),
    }
}

async fn greet(peer: &Peer) -> Result<(), MigrateError> {
    let hello = Request::Hello {
        versions: vec![PROTOCOL],
        software: env!("CARGO_PKG_VERSION").to_owned(),
    };
    match peer
        .ask("greet the destination", hello, deadline::REQUEST)
        .await?
    {
        Reply::Hello {
            version: PROTOCOL, ..
        } => Ok(()),
        _ => Err(MigrateError::OutOfStep { what: "Hello" }),
    }
}

async fn describe_vm(
    run: &Run,
    node: &Node,
    peer: &Peer,
    mac: MacAddr,
    drives: &[Drive],
) -> Result<PeerPrepared, MigrateError> {
    let (machine_type, ram_bytes, vcpus) = node.shape().await;
    let addresses: Vec<IpAddr> = run.config.vm_ips.clone();
    let vm = VmDescription {
        addresses,
        mac: mac.0,
        tap_mtu: node.tap.mtu,
        ram_bytes,
        machine_type,
        vcpus,
        qemu_version: node.qemu_version(),
        storage: match run.config.common.shared_storage {
            true => Storage::Shared,
            false => Storage::Mirrored,
        },
        drives: drives.iter().map(|d| d.description.clone()).collect(),
    };
    match peer
        .ask(
            "prepare the destination",
            Request::Prepare(vm),
            deadline::REQUEST,
        )
        .await?
    {
        Reply::Prepared(prepared) => Ok(prepared),
        _ => Err(MigrateError::OutOfStep { what: "Prepare" }),
    }
}
