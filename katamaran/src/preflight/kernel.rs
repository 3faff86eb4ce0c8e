//! What this kernel can do: tried, not guessed from its version.

use super::check::{Area, Check};
use super::found::Found;
use crate::config::{CommonConfig, PreflightConfig, TunnelMode};
use crate::conntrack;
use crate::ebpf::{self, AttachMode, EbpfError, Trial, WitnessMissing};
use crate::migrate::chain;
use crate::migrate::message::VXLAN_PORT;
use crate::net::NetError;
use crate::net::scratch::Scratch;

const AREA: Area = Area::Kernel;
const AS_ROOT: &str = "Run it as root.";
/// Kinds of tunnel devices that other tools use; told where the kernel has them.
const OTHER_TUNNELS: [&str; 4] = ["gretap", "ip6gretap", "ipip", "ip6tnl"];

/// Whether there is a plug; `None` where that could not be tried.
pub(super) async fn look(
    all: &PreflightConfig,
    config: &CommonConfig,
    found: &mut Found,
) -> Option<bool> {
    found.push(Check::ok(
        AREA,
        "release",
        format!("Linux {}, {}", found.kernel, std::env::consts::ARCH),
    ));
    found.push(reasons());
    let scratch = Scratch::new().await;
    let scratch = match &scratch {
        Ok(scratch) => scratch,
        Err(error) => {
            found.push(untried("trials", error));
            found.push(bpffs());
            return None;
        }
    };
    programs(scratch, found);
    found.push(bpffs());
    let plug = plug(scratch, found).await;
    found.push(tunnels(scratch, config.tunnel).await);
    if all.carries_connections() {
        found.push(connections(scratch));
    }
    leftovers(found);
    plug
}

fn untried(name: &'static str, error: &NetError) -> Check {
    let why = format!(
        "programs, queues and tunnels can't be tried in a network namespace of its own: {}",
        chain(error)
    );
    let takes = if error.not_permitted() {
        AS_ROOT
    } else if error.unsupported() {
        "It takes veth devices (CONFIG_VETH): load the module."
    } else {
        "Look into the kernel's log."
    };
    Check::unchecked(AREA, name, why, takes)
}

/// Anybody may read these.
fn reasons() -> Check {
    match ebpf::drop_reasons() {
        Ok(count) => Check::ok(
            AREA,
            "drop-reasons",
            format!("the kernel describes itself (BTF), with {count} reasons for a drop"),
        ),
        Err(error) => Check::degraded(
            AREA,
            "drop-reasons",
            chain(&error),
            "Without them the kernel can't be asked for its drops, and the verdict is `unproven` at best. Use a kernel \
             from 5.17 on with CONFIG_DEBUG_INFO_BTF.",
        ),
    }
}

fn programs(scratch: &Scratch, found: &mut Found) {
    if let Err(error) = ebpf::object_state() {
        let remedy =
            "A katamaran without its programs can't migrate; see the command in the message.";
        found.push(Check::missing(AREA, "programs", chain(&error), remedy));
        return;
    }
    let device = scratch.device();
    let tried = scratch.netns().run(move || ebpf::try_programs(device));
    match tried {
        Err(error) => found.push(untried("programs", &error)),
        Ok(Err(error)) => found.push(refused("programs", &error)),
        Ok(Ok(trial)) => {
            found.push(Check::ok(
                AREA,
                "programs",
                "the kernel takes maps and programs",
            ));
            attached(&trial, found);
        }
    }
}

fn refused(name: &'static str, error: &EbpfError) -> Check {
    if error.not_permitted() {
        return Check::unchecked(AREA, name, chain(error), AS_ROOT);
    }
    let remedy = "The redirect needs it. Use a kernel from 6.6 on with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and \
                  CONFIG_NET_CLS_BPF.";
    Check::missing(AREA, name, first_line(&chain(error)), remedy)
}

fn attached(trial: &Trial, found: &mut Found) {
    found.push(match &trial.hooks {
        Ok(AttachMode::Tcx) => Check::ok(AREA, "tc-hook", "TCX, ahead of the CNI's programs"),
        Ok(AttachMode::Clsact) => Check::degraded(
            AREA,
            "tc-hook",
            "clsact filters: this kernel has no TCX (Linux 6.6)",
            "Where the VM's tap is not in a pod, attaching the hook under load drops packets for an instant, and zero-drop is \
             never proven; a crash of katamaran leaves the filter. Use a kernel from 6.6 on.",
        ),
        Err(error) => refused("tc-hook", error),
    });
    found.push(match &trial.tracepoints {
        Ok(()) => Check::ok(
            AREA,
            "drop-reports",
            "tracepoints kfree_skb and net_dev_start_xmit",
        ),
        Err(missing) => no_witness(missing),
    });
}

fn no_witness(missing: &WitnessMissing) -> Check {
    Check::degraded(
        AREA,
        "drop-reports",
        first_line(&chain(missing)),
        "The kernel can't be asked for its drops: the verdict is `unproven` at best. It takes CAP_PERFMON and \
         CONFIG_TRACEPOINTS.",
    )
}

/// The verifier's log follows the first line.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn bpffs() -> Check {
    let name = "bpffs";
    if ebpf::is_mounted() {
        let path = std::path::Path::new(ebpf::BPFFS);
        return match nix::unistd::access(path, nix::unistd::AccessFlags::W_OK) {
            Ok(()) => Check::ok(AREA, name, format!("mounted on {}", ebpf::BPFFS)),
            Err(errno) => Check::missing(
                AREA,
                name,
                format!("{} can't be written to: {errno}", ebpf::BPFFS),
                "What keeps the redirect through a crash is pinned there. Run katamaran as root, with the file system \
                 mounted for writing.",
            ),
        };
    }
    let found = format!("no BPF file system on {}", ebpf::BPFFS);
    if nix::unistd::geteuid().is_root() {
        Check::degraded(
            AREA,
            name,
            found,
            "A migration mounts it, for this mount namespace: what it pins there does not outlive a container, nor does \
             the redirect a crash in one. Mount it on the node: mount -t bpf bpf /sys/fs/bpf. Under `ip netns exec` it is \
             hidden: use nsenter --net.",
        )
    } else {
        Check::missing(
            AREA,
            name,
            found,
            "Mount it as root: mount -t bpf bpf /sys/fs/bpf",
        )
    }
}

async fn plug(scratch: &Scratch, found: &mut Found) -> Option<bool> {
    let name = "sch_plug";
    let (check, plug) = match scratch.try_plug().await {
        Ok(()) => (
            Check::ok(AREA, name, "installs, holds, releases"),
            Some(true),
        ),
        Err(error) if error.unsupported() => (
            Check::degraded(
                AREA,
                name,
                "not in this kernel",
                "Packets for the VM wait in its tap's ring while it moves: as safe, and proven by the tap's counters, but \
                 a burst beyond the ring is lost (see buffer). Load or build sch_plug on the destination \
                 (CONFIG_NET_SCH_PLUG).",
            ),
            Some(false),
        ),
        Err(error) => (untried(name, &error), None),
    };
    found.push(check);
    plug
}

async fn tunnels(scratch: &Scratch, mode: TunnelMode) -> Check {
    let name = "tunnel-kinds";
    let mut kinds = vec!["ipip and ip6ip6 by program"];
    let vxlan = match scratch.try_vxlan(VXLAN_PORT).await {
        Ok(()) => true,
        Err(error) if error.unsupported() => false,
        Err(error) => return untried(name, &error),
    };
    if vxlan {
        kinds.push("vxlan");
    }
    for kind in OTHER_TUNNELS {
        if scratch.try_device(kind).await.is_ok() {
            kinds.push(kind);
        }
    }
    let kinds = kinds.join(", ");
    match (vxlan, mode) {
        (true, _) => Check::ok(AREA, name, kinds),
        (false, TunnelMode::Vxlan) => Check::missing(
            AREA,
            name,
            format!("{kinds}; no vxlan"),
            "--tunnel-mode vxlan needs the kernel's vxlan devices (CONFIG_VXLAN): load the module, or use auto.",
        ),
        (false, _) => Check::degraded(
            AREA,
            name,
            format!("{kinds}; no vxlan"),
            "A VM whose full packets do not fit the path with an outer IP header can't be migrated. Load or build vxlan \
             (CONFIG_VXLAN).",
        ),
    }
}

fn connections(scratch: &Scratch) -> Check {
    let name = "conntrack";
    let costs = "Connections of the VM that a node translates (services, masquerading) or that its firewall knows may break; \
                 all else goes on.";
    let trial = scratch
        .netns()
        .run(|| conntrack::is_tracking().then(conntrack::try_entries));
    let trial = match trial.map(Option::transpose) {
        Err(error) => return untried(name, &error),
        Ok(Err(error)) if error.not_permitted() => {
            return Check::unchecked(AREA, name, chain(&error), AS_ROOT);
        }
        Ok(Err(error)) => {
            let remedy = format!(
                "{costs} Load or build ctnetlink (CONFIG_NF_CT_NETLINK) if these nodes do."
            );
            return Check::degraded(AREA, name, chain(&error), remedy);
        }
        Ok(Ok(None)) => {
            return Check::ok(
                AREA,
                name,
                "this kernel tracks no connections: there are none to carry",
            );
        }
        Ok(Ok(Some(trial))) => trial,
    };
    match (trial.plain, trial.translated) {
        (Err(refusal), _) => {
            let found = format!("an entry is refused: {refusal}");
            Check::degraded(
                AREA,
                name,
                found,
                format!("{costs} Look into the kernel's log."),
            )
        }
        (Ok(()), Err(refusal)) => Check::degraded(
            AREA,
            name,
            format!("a translated entry is refused: {refusal}"),
            format!("{costs} Load or build NAT (CONFIG_NF_NAT) if these nodes translate."),
        ),
        (Ok(()), Ok(())) if !trial.news => Check::degraded(
            AREA,
            name,
            "entries can be carried; the kernel tells nothing of new ones",
            "Each look for new connections walks the whole table of the machine, and what begins in the moments before the \
             pause is carried after it: packets of it that a firewall drops are sent again. \
             Set net.netfilter.nf_conntrack_events to 1.",
        ),
        (Ok(()), Ok(())) => Check::ok(
            AREA,
            name,
            "entries can be carried, translated ones as well; the kernel tells of new ones",
        ),
    }
}

fn leftovers(found: &mut Found) {
    let name = "leftovers";
    let check = match ebpf::stale_sessions() {
        Ok(stale) if stale.is_empty() => Check::ok(AREA, name, "none of dead migrations"),
        Ok(stale) => {
            let ids: Vec<String> = stale.iter().map(ToString::to_string).collect();
            Check::degraded(
                AREA,
                name,
                format!("programs of dead migrations: {}", ids.join(", ")),
                "Their redirect may still be on. `katamaran cleanup` says what they left, and removes it with --apply."
                    .to_owned(),
            )
        }
        Err(error) => Check::unchecked(AREA, name, chain(&error), AS_ROOT),
    };
    found.push(check);
}
