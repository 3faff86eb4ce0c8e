//! Prepare: look at everything that could make the migration impossible, on both nodes, and change
//! nothing, but for what a dead migration of this VM has left.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::cli::SourceVm;
use crate::config::SourceConfig;
use crate::control::{Client, Dialer, Notices, Preamble, Timing, plaintext};
use crate::deadline;
use crate::discover::Wiring;
use crate::ebpf;
use crate::journal::Receipts;
use crate::migrate::aftermath::{clear_the_tap, clear_the_way};
use crate::migrate::diary::{Beginning, Diary};
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::fit;
use crate::migrate::message::{
    MigrationProtocol, NicDescription, PROTOCOL, Prepared as PeerPrepared, Reply, Request, Storage,
    Tunnel, VmDescription,
};
use crate::migrate::nic::Nic;
use crate::migrate::node::{Node, refused};
use crate::migrate::shared::attach_source;
use crate::migrate::storage::PREFIX;
use crate::migrate::storage::drive::{self, Drive};
use crate::net::Netlink;
use crate::net::link::{LinkInfo, MacAddr};
use crate::net::route::Underlay;
use crate::qmp::Qmp;
use crate::qmp::command::{self, RunState};

use super::Run;
use super::peer::Peer;
use crate::role::Role;

/// Both nodes have been looked at; nothing has been changed.
pub(crate) struct Prepared {
    pub(crate) node: Node,
    pub(crate) peer: Peer,
    pub(crate) notices: Notices<MigrationProtocol>,
    /// One for each of the node's NICs, in their order.
    pub(crate) ways: Vec<Way>,
    /// How to reach the destination, one per family.
    pub(crate) underlays: Vec<Underlay>,
    pub(crate) tunnel: Tunnel,
    /// The drives to mirror.
    pub(crate) drives: Vec<Drive>,
    /// Where streams of RAM and of drives are dialled.
    pub(crate) dialer: Dialer,
}

/// The way of the packets for one of the VM's network cards.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) nic: Nic,
    pub(crate) mac: MacAddr,
    /// The VM's addresses on it.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where they are turned.
    pub(crate) hook: Hook,
}

impl Way {
    pub(crate) fn describe(&self) -> NicDescription {
        NicDescription {
            addresses: self.addresses.clone(),
            mac: self.mac.0,
            tap_mtu: self.nic.tap.mtu,
        }
    }
}

/// Where the VM's packets are turned.
#[derive(Debug, Clone)]
pub(crate) struct Hook {
    /// The device of the node that leads to the VM: as they leave through it.
    pub(crate) device: LinkInfo,
    /// The pod's end of that device: as they come in there, and not on the node.
    pub(crate) inside: Option<LinkInfo>,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inside {
            None => f.write_str(&self.device.name),
            Some(inside) => write!(
                f,
                "{} in the pod (behind {})",
                inside.name, self.device.name
            ),
        }
    }
}

pub(crate) async fn prepare(run: &mut Run) -> Result<Prepared, MigrateError> {
    ebpf::object_state().doing("look at the eBPF programs")?;
    let config = &run.config;
    clear_the_way(&config.common.qmp).await?;
    let node = Node::open(&config.common).await?;
    run.vm = Some(node.qmp.clone());
    clear_the_tap(&node).await?;
    check_vm_is_free(&node.qmp).await?;
    let ways = find_ways(&node, config.redirect_dev.as_deref(), &config.vm_ips).await?;
    let underlays = find_underlays(&node.netlink, &config.dest_ips).await?;
    let tunnel = choose_tunnel(config, &ways, &underlays)?;
    let drives = match config.common.shared_storage {
        true => Vec::new(),
        false => find_drives(&node.qmp, config.common.drive_ids.as_deref()).await?,
    };

    let destination = SocketAddr::new(config.dest_ips[0], config.common.port);
    let receipts = Receipts::random();
    let beginning = Beginning {
        session: run.session,
        role: Role::Source,
        qmp: &config.common.qmp,
        peer: destination.to_string(),
        vm: config.vm_ips.clone(),
        ends_qemu: config.source_vm == SourceVm::Quit,
        receipts: Some(receipts.clone()),
        convergence_s: Some(config.linger_limit.as_secs()),
    };
    run.diary = Diary::begin(&node, beginning)?;
    run.progress.keep(run.diary.clone());
    let dialer = Dialer::new(destination, plaintext());
    let stream = dialer
        .dial(Preamble::control(run.session))
        .await
        .map_err(|error| MigrateError::Connect(Box::new(error)))?;
    let (client, notices) = Client::start(stream, Timing::default());
    let peer = Peer::new(client);
    greet(&peer).await?;
    let shared = config.common.shared_storage;
    let nics = ways.iter().map(Way::describe).collect();
    let mut vm = describe_vm(&node, nics, shared, &drives).await;
    vm.receipts = Some(receipts);
    vm.convergence_s = Some(config.linger_limit.as_secs());
    let theirs = ask_prepare(&peer, vm).await?;
    if run.config.common.shared_storage {
        run.shared = attach_source(&run.config, run.session, &node, &peer, &mut run.undo).await?;
    }
    if !run.shared.is_empty() {
        run.start_clock();
    }
    tracing::info!(
        tap = node.tap_names(),
        hook = hook_names(&ways),
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
        ways,
        underlays,
        tunnel,
        drives,
        dialer,
    })
}

fn hook_names(ways: &[Way]) -> String {
    let names: Vec<String> = ways.iter().map(|way| way.hook.to_string()).collect();
    names.join(", ")
}

/// One tunnel carries the packets of all cards: a full one of the widest fits.
fn choose_tunnel(
    config: &SourceConfig,
    ways: &[Way],
    underlays: &[Underlay],
) -> Result<Tunnel, MigrateError> {
    let taps = ways.iter().map(|way| &way.nic.tap);
    let widest = taps.max_by_key(|tap| tap.mtu);
    let widest = widest.ok_or(MigrateError::OutOfStep { what: "no NIC" })?;
    fit::choose(config.common.tunnel, &config.vm_ips, widest, underlays)
}

/// The VM runs, and nothing keeps it from being migrated.
pub(crate) async fn check_vm_is_free(qmp: &Qmp) -> Result<(), MigrateError> {
    let status = qmp
        .execute(command::QueryStatus)
        .await
        .doing("ask for the VM's state")?;
    if status.status != RunState::Running {
        return Err(MigrateError::NotRunning(status.status.to_string()));
    }
    let migration = qmp
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
pub(crate) async fn find_drives(
    qmp: &Qmp,
    named: Option<&[String]>,
) -> Result<Vec<Drive>, MigrateError> {
    let disks = qmp
        .execute(command::QueryBlock)
        .await
        .doing("ask for the VM's drives")?;
    let drives =
        drive::choose(named, &disks).map_err(|problems| MigrateError::Refused { problems })?;
    let jobs = qmp
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

/// The way of the packets for each of the VM's cards.
///
/// # Errors
/// It can't be told, or not which addresses are whose.
pub(crate) async fn find_ways(
    node: &Node,
    redirect_dev: Option<&str>,
    vm_ips: &[IpAddr],
) -> Result<Vec<Way>, MigrateError> {
    if node.nics.len() > 1 && redirect_dev.is_some() {
        return Err(refused(
            "--redirect-dev names one device, and the VM has several NICs: leave it out, and the device of each is found",
        ));
    }
    let addresses = share_out(node, vm_ips).await?;
    let mut ways = Vec::new();
    for (nic, addresses) in node.nics.iter().zip(addresses) {
        let mac = nic.mac()?;
        let hook = find_hook(
            &node.netlink,
            Some(nic),
            redirect_dev,
            &addresses,
            Some(mac),
        )
        .await?;
        ways.push(Way {
            nic: nic.clone(),
            mac,
            addresses,
            hook,
        });
    }
    Ok(ways)
}

/// The addresses of each card: those whose route leads to its tap, or to its pod's veth.
async fn share_out(node: &Node, vm_ips: &[IpAddr]) -> Result<Vec<Vec<IpAddr>>, MigrateError> {
    if let [_] = node.nics[..] {
        return Ok(vec![vm_ips.to_vec()]);
    }
    let mut shares = vec![Vec::new(); node.nics.len()];
    let mut problems = Vec::new();
    for address in vm_ips {
        let towards = node.netlink.towards_vm(*address, None).await;
        let towards = towards.doing("find which of the VM's NICs has the address")?;
        let leads_there = |nic: &Nic| {
            let last = nic.last_device();
            last.is_ok_and(|last| last.index == towards.device.index)
        };
        match node.nics.iter().position(leads_there) {
            Some(at) => shares[at].push(*address),
            None => problems.push(format!(
                "--vm-ip {address} leads to {}, and none of the VM's NICs is behind it (its taps: {})",
                towards.device.name,
                node.tap_names()
            )),
        }
    }
    for (nic, share) in node.nics.iter().zip(&shares) {
        if share.is_empty() {
            problems.push(format!(
                "no address of --vm-ip leads to the VM's NIC behind {}: what comes for it would be lost; name its addresses, too",
                nic.tap.name
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(shares),
        false => Err(MigrateError::Refused { problems }),
    }
}

/// Finds where the VM's packets are turned. In a pod at its own end of the veth, for a data path may go past the node's
/// end; else on the device that the route to the VM leads to.
pub(crate) async fn find_hook(
    netlink: &Netlink,
    nic: Option<&Nic>,
    wanted: Option<&str>,
    vm_ips: &[IpAddr],
    mac: Option<MacAddr>,
) -> Result<Hook, MigrateError> {
    let on_node = |device| Hook {
        device,
        inside: None,
    };
    if let Some(name) = wanted {
        return netlink
            .link_by_name(name)
            .await
            .map(on_node)
            .doing("look at --redirect-dev");
    }
    match nic.map(|nic| &nic.wiring) {
        Some(Ok(Wiring::Pod(pod))) => {
            return Ok(Hook {
                device: pod.outside.clone(),
                inside: Some(pod.inside.clone()),
            });
        }
        Some(Err(why)) => {
            return Err(refused(format!(
                "{why}; or name the node's device that leads to the VM with --redirect-dev"
            )));
        }
        Some(Ok(Wiring::Node)) | None => {}
    }
    let mut hook: Option<LinkInfo> = None;
    for address in vm_ips {
        let towards = netlink
            .towards_vm(*address, mac)
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
    hook.map(on_node).ok_or_else(|| refused("--vm-ip is empty"))
}

/// The way to each of the destination's addresses.
pub(crate) async fn find_underlays(
    netlink: &Netlink,
    dest_ips: &[IpAddr],
) -> Result<Vec<Underlay>, MigrateError> {
    let mut underlays = Vec::new();
    for peer in dest_ips {
        let underlay = netlink
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

/// Do both speak the same? Returns the destination's release.
pub(crate) async fn greet(peer: &Peer) -> Result<String, MigrateError> {
    let hello = Request::Hello {
        versions: vec![PROTOCOL],
        software: env!("CARGO_PKG_VERSION").to_owned(),
    };
    match peer
        .ask("greet the destination", hello, deadline::REQUEST)
        .await?
    {
        Reply::Hello {
            version: PROTOCOL,
            software,
        } => Ok(software),
        // No release answers with a version that it was not offered.
        Reply::Hello { version, software } => Err(refused(format!(
            "the destination (katamaran {software}) speaks version {version} of the session, the source (katamaran {}) \
             version {PROTOCOL}: install the same release of katamaran on both",
            env!("CARGO_PKG_VERSION")
        ))),
        _ => Err(MigrateError::OutOfStep { what: "Hello" }),
    }
}

/// What the destination has to have the same.
pub(crate) async fn describe_vm(
    node: &Node,
    nics: Vec<NicDescription>,
    shared_storage: bool,
    drives: &[Drive],
) -> VmDescription {
    let (machine_type, ram_bytes, vcpus) = node.shape().await;
    let mut nics = nics.into_iter();
    VmDescription {
        nic: nics.next().unwrap_or_default(),
        more_nics: nics.collect(),
        ram_bytes,
        machine_type,
        vcpus,
        qemu_version: node.qemu_version(),
        storage: match shared_storage {
            true => Storage::Shared,
            false => Storage::Mirrored,
        },
        drives: drives.iter().map(|d| d.description.clone()).collect(),
        receipts: None,
        convergence_s: None,
    }
}

/// Has the destination compare.
pub(crate) async fn ask_prepare(
    peer: &Peer,
    vm: VmDescription,
) -> Result<PeerPrepared, MigrateError> {
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
