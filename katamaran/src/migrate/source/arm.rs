//! Arm: the destination's delivery path first, then the source's hook in COUNT mode. Until the flip
//! nothing changes for the VM's packets but that they are counted.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::deadline;
use crate::ebpf::{self, AttachPreference, Encap, Outer, SourceDataplane, SourceSpec, TapLocation};
use crate::migrate::error::{Doing as _, MigrateError, chain};
use crate::migrate::message::{Arm, Reply, Request, Tunnel};
use crate::migrate::node::inum;
use crate::net::detour::Detour;
use crate::net::vxlan::{Vxlan, VxlanSpec};
use crate::qmp::Event;

use super::Run;
use super::hooks::Hooks;
use super::lane::Lane;
use super::prepare::{Prepared, Way};
use super::storage::Mirror;
use crate::role::Role;
use crate::session_id::SessionId;

/// Transmit queue of the tunnel device, in packets.
const TUNNEL_QUEUE: u32 = 16_384;

/// Both data paths stand; packets are being counted.
pub(crate) struct Armed {
    pub(crate) prepared: Prepared,
    /// One for each of the VM's network cards, in their order.
    pub(crate) lanes: Vec<Lane>,
    /// The drives' mirrors, from the end of their copy to the hand-over.
    pub(crate) mirror: Option<Mirror>,
    /// We have told QEMU to stop the VM.
    pub(crate) stopped: Arc<AtomicBool>,
    /// QEMU has stopped the VM by itself.
    pub(crate) early_stop: Option<Event>,
}

impl Armed {
    /// Whether packets can be turned.
    pub(crate) fn redirects(&self) -> bool {
        self.lanes.iter().any(|lane| lane.hooks.is_some())
    }

    /// Takes a reading of all taps.
    pub(crate) fn observe_taps(&self) {
        self.lanes.iter().for_each(Lane::observe);
    }
}

pub(crate) async fn arm(prepared: Prepared, run: &mut Run) -> Result<Armed, MigrateError> {
    let peer = prepared.peer.clone();
    run.undo
        .on_abort_elsewhere("destination's set-up", move || async move {
            let abort = Request::Abort {
                reason: "the source gave up".into(),
                nic: 0,
            };
            peer.ask("abort on the destination", abort, deadline::REQUEST)
                .await
                .map(|_| ())
                .map_err(|e| chain(&e))
        });
    let request = Request::Arm(Arm {
        tunnel: prepared.tunnel,
        source_addresses: prepared.underlays.iter().map(|u| u.local).collect(),
        destination_addresses: prepared.underlays.iter().map(|u| u.peer).collect(),
        downtime_limit_ms: u64::try_from(run.config.downtime.as_millis()).unwrap_or(u64::MAX),
    });
    match prepared
        .peer
        .ask("arm the destination", request, deadline::ARM)
        .await?
    {
        Reply::Armed { buffer } => run.report.buffer = Some(buffer),
        _ => return Err(MigrateError::OutOfStep { what: "Arm" }),
    }
    run.report.tunnel = Some(prepared.tunnel);

    let mut lanes = Vec::new();
    for (number, way) in prepared.ways.iter().enumerate() {
        let hooks = match prepared.tunnel {
            Tunnel::None => None,
            Tunnel::Ip | Tunnel::Gre | Tunnel::Vxlan { .. } => {
                let session = run.session.of_nic(number);
                Some(attach(&prepared, way, session, run).await?)
            }
        };
        lanes.push(Lane::new(number, way.clone(), hooks)?);
    }

    Ok(Armed {
        prepared,
        lanes,
        mirror: None,
        stopped: Arc::new(AtomicBool::new(false)),
        early_stop: None,
    })
}

/// What the programs put around packets, and take off them.
pub(crate) fn outer(tunnel: Tunnel) -> Outer {
    match tunnel {
        Tunnel::Gre => Outer::Gre,
        Tunnel::Ip | Tunnel::Vxlan { .. } | Tunnel::None => Outer::Ip,
    }
}

/// Attaches the programs for one network card, which goes by `session`.
async fn attach(
    prepared: &Prepared,
    way: &Way,
    session: SessionId,
    run: &mut Run,
) -> Result<Hooks, MigrateError> {
    let nic = &way.nic;
    let encap = match prepared.tunnel {
        Tunnel::Vxlan { port } => {
            let underlay = &prepared.underlays[0];
            let spec = VxlanSpec {
                session,
                role: Role::Source,
                local: underlay.local,
                remote: underlay.peer,
                port,
                vm_mtu: nic.tap.mtu,
                txqlen: TUNNEL_QUEUE,
            };
            let device = Vxlan::create(&prepared.node.netlink, &spec)
                .await
                .doing("create the vxlan device")?;
            let ifindex = device.index();
            run.undo.way("source's vxlan device", move || async move {
                device.remove().await.map_err(|e| chain(&e))
            });
            Encap::Device { ifindex }
        }
        Tunnel::Ip | Tunnel::Gre | Tunnel::None => Encap::Ip {
            outer: outer(prepared.tunnel),
            underlay_ifindex: prepared.underlays[0].device,
            local: prepared.underlays.iter().map(|u| u.local).collect(),
            remote: prepared.underlays.iter().map(|u| u.peer).collect(),
            path_mtu: prepared.underlays.iter().map(|u| u.mtu).min().unwrap_or(0),
            oversize_ifindex: None,
        },
    };
    let tunnel_device = match &encap {
        Encap::Device { ifindex } => Some(*ifindex),
        Encap::Ip { .. } => None,
    };
    let detour = match &way.hook.inside {
        // A clsact qdisc on the pod's own veth would reset the queue that the VM's packets come through.
        Some(inside) if !ebpf::has_tcx() => {
            let pair = Detour::create(&nic.netlink, &nic.tap_netlink, session, inside.mtu)
                .await
                .doing("create a pair of devices between the pod and this node")?;
            let ends = ebpf::Detour {
                inside: pair.inside(),
                outside: pair.outside(),
            };
            run.undo.way(
                "source's pair of devices into the pod",
                move || async move { pair.remove().await.map_err(|e| chain(&e)) },
            );
            Some(ends)
        }
        _ => None,
    };
    let spec = SourceSpec {
        session,
        hook_ifindex: way.hook.device.index,
        pod: way.hook.inside.as_ref().map(|end| nic.in_pod(end)),
        detour,
        netns_inum: inum(&nic.netns),
        vm_addresses: way.addresses.clone(),
        vm_mac: way.mac.0,
        encap,
        tap: TapLocation {
            netns_inum: inum(&nic.tap_netns),
            ifindex: nic.tap.index,
        },
        attach: AttachPreference::default(),
    };
    let dataplane = nic
        .netns
        .run(move || SourceDataplane::arm(&spec))
        .doing("enter the node's network namespace")?
        .doing("attach the source's programs")?;
    tracing::debug!(mode = ?dataplane.attach_mode(), hook = %way.hook, "counting");
    let hooks = Hooks::new(dataplane, nic.netns.clone(), tunnel_device);
    let undo = hooks.clone();
    run.undo.way("source's programs", move || async move {
        tokio::task::spawn_blocking(move || undo.remove())
            .await
            .map_err(|e| e.to_string())?
    });
    Ok(hooks)
}
