//! Arm: the destination's delivery path first, then the source's hook in COUNT mode. Until the flip
//! nothing changes for the VM's packets but that they are counted.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::deadline;
use crate::ebpf::{self, AttachPreference, Encap, Outer, SourceDataplane, SourceSpec, TapLocation};
use crate::migrate::error::{Doing as _, MigrateError, chain};
use crate::migrate::message::{Arm, Reply, Request, Tunnel};
use crate::migrate::node::inum;
use crate::migrate::tap_watch::{TapWatch, lock};
use crate::net::detour::Detour;
use crate::net::tap::TapCounters;
use crate::net::vxlan::{Vxlan, VxlanSpec};
use crate::qmp::Event;

use super::Run;
use super::hooks::Hooks;
use super::prepare::Prepared;
use super::storage::Mirror;
use crate::role::Role;

/// Transmit queue of the tunnel device, in packets.
const TUNNEL_QUEUE: u32 = 16_384;

/// Both data paths stand; packets are being counted.
pub(crate) struct Armed {
    pub(crate) prepared: Prepared,
    pub(crate) hooks: Option<Hooks>,
    pub(crate) watch: Arc<Mutex<TapWatch>>,
    /// The drives' mirrors, from the end of their copy to the hand-over.
    pub(crate) mirror: Option<Mirror>,
    /// The VM's packets that were on their way to the tap when the hook was attached before them.
    pub(crate) past_hook: u64,
    /// We have told QEMU to stop the VM.
    pub(crate) stopped: Arc<AtomicBool>,
    /// QEMU has stopped the VM by itself.
    pub(crate) early_stop: Option<Event>,
}

pub(crate) async fn arm(prepared: Prepared, run: &mut Run) -> Result<Armed, MigrateError> {
    let peer = prepared.peer.clone();
    run.undo
        .on_abort_elsewhere("destination's set-up", move || async move {
            let abort = Request::Abort {
                reason: "the source gave up".into(),
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

    let hooks = match prepared.tunnel {
        Tunnel::None => None,
        Tunnel::Ip | Tunnel::Gre | Tunnel::Vxlan { .. } => Some(attach(&prepared, run).await?),
    };
    let counters = TapCounters::open(&prepared.node.tap_netns, prepared.node.tap.index)
        .doing("read the tap's counters")?;
    let watch = Arc::new(Mutex::new(TapWatch::new(counters)));
    // The first reading says how the counters stand to each other, so the earlier the better.
    let mut past_hook = 0;
    if let Some(hooks) = &hooks {
        lock(&watch).observe(hooks);
        past_hook = hooks.past_hook();
    }

    Ok(Armed {
        prepared,
        hooks,
        watch,
        mirror: None,
        past_hook,
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

async fn attach(prepared: &Prepared, run: &mut Run) -> Result<Hooks, MigrateError> {
    let encap = match prepared.tunnel {
        Tunnel::Vxlan { port } => {
            let underlay = &prepared.underlays[0];
            let spec = VxlanSpec {
                session: run.session,
                role: Role::Source,
                local: underlay.local,
                remote: underlay.peer,
                port,
                vm_mtu: prepared.node.tap.mtu,
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
    let detour = match &prepared.hook.inside {
        // A clsact qdisc on the pod's own veth would reset the queue that the VM's packets come through.
        Some(inside) if !ebpf::has_tcx() => {
            let (node, pod) = (&prepared.node.netlink, &prepared.node.tap_netlink);
            let pair = Detour::create(node, pod, run.session, inside.mtu)
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
    let vm_addresses: Vec<IpAddr> = run.config.vm_ips.clone();
    let spec = SourceSpec {
        session: run.session,
        hook_ifindex: prepared.hook.device.index,
        pod: prepared
            .hook
            .inside
            .as_ref()
            .map(|end| prepared.node.in_pod(end)),
        detour,
        netns_inum: inum(&prepared.node.netns),
        vm_addresses,
        vm_mac: prepared.mac.0,
        encap,
        tap: TapLocation {
            netns_inum: inum(&prepared.node.tap_netns),
            ifindex: prepared.node.tap.index,
        },
        attach: AttachPreference::default(),
    };
    let dataplane = prepared
        .node
        .netns
        .run(move || SourceDataplane::arm(&spec))
        .doing("enter the node's network namespace")?
        .doing("attach the source's programs")?;
    tracing::debug!(mode = ?dataplane.attach_mode(), hook = %prepared.hook, "counting");
    let hooks = Hooks::new(dataplane, prepared.node.netns.clone(), tunnel_device);
    let undo = hooks.clone();
    run.undo.way("source's programs", move || async move {
        tokio::task::spawn_blocking(move || undo.remove())
            .await
            .map_err(|e| e.to_string())?
    });
    Ok(hooks)
}
