//! What a redirected packet costs, beside the kernel's own tunnel on the same path.
//!
//! ```text
//!   A:  eth0 receives  routed ─┬─▶ tap0, ktm_source ─▶ eth0: counted, taken
//!                              └─▶ a tunnel device  ─▶ eth0: the same
//! ```
//!
//! The kernel makes the frames as a card's driver hands them over, and they are taken where the card's driver would have them: what is measured
//! is the node, and not the card. One thread does all of it, so the CPU time that it takes is the cost. In turns with both, the packets are
//! taken as they come: what making them costs alone. The programs' tracepoints see every packet of this machine: so they are armed in all
//! of these, and once they are not.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use clap::Args;
use katamaran::ebpf::{AttachPreference, Encap, Outer, SourceDataplane, SourceSpec, TapLocation};
use katamaran::session_id::SessionId;

use super::program_bench::{program_bench, programs};
use super::screen::Screen;
use super::spread::Spread;
use super::table::Table;
use crate::bpf::{self, Counter, Way, taker};
use crate::lab::{CLIENT_V4, GUEST_MAC, GUEST_V4, Lab, LabConfig, Netns, Node, TAP, UNDERLAY};
use crate::standin::open_tap;
use crate::traffic::frames::{Sender, udp_frame};

const TUNNEL: &str = "base0";
const TUNNEL_MAC: &str = "02:00:00:00:0b:0b";
/// Bytes of UDP payload.
const PAYLOAD: usize = 100;
/// The path's, for what the program encapsulates.
const PATH_MTU: u32 = 1500;

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct RedirectBenchOptions {
    /// How many times each way
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets each time
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1000..))]
    packets: u32,
    /// The kernel's tunnel
    #[arg(long, default_value = "vxlan", value_parser = ["vxlan", "ipip", "gre"])]
    tunnel: String,
}

/// What becomes of the packets at A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    /// Taken as they come.
    Taken,
    /// By the program, to the other node, as once the VM runs there.
    Redirected,
    /// The same, as until then: with a copy of each.
    Copied,
    /// By the node's routes into the kernel's tunnel; the programs are armed, as in [`Arm::Redirected`], and count.
    Tunnel,
    /// The same, and nothing is armed.
    Bare,
}

impl Arm {
    const ALL: [Self; 5] = [
        Self::Taken,
        Self::Redirected,
        Self::Copied,
        Self::Tunnel,
        Self::Bare,
    ];

    fn is_armed(self) -> bool {
        self != Self::Bare
    }
}

/// Measures and prints. Returns the ratio: packets per second by our redirect over those by the kernel's tunnel, of the same
/// round; the median of all rounds.
///
/// # Errors
///
/// When the lab can't be made, or packets are lost on the way.
pub fn redirect_bench(screen: &Screen, options: &RedirectBenchOptions) -> Result<f64> {
    let rig = Rig::new(options)?;
    screen.print(&format!(
        "{} x {} packets of {PAYLOAD} bytes, redirected and through the kernel's {}, in turns\n",
        options.rounds, options.packets, options.tunnel
    ))?;
    let mut ns = [const { Vec::new() }; Arm::ALL.len()];
    for round in 0..options.rounds as usize {
        // Who goes first takes turns.
        for turn in 0..Arm::ALL.len() {
            let at = (round + turn) % Arm::ALL.len();
            ns[at].push(rig.ns_per_packet(Arm::ALL[at])?);
        }
    }
    let names = [
        "taken as they come",
        "redirected",
        "redirected and copied",
        &format!("kernel's {}", options.tunnel),
        &format!("kernel's {}, nothing armed", options.tunnel),
    ];
    let mut table = Table::new(&["ns a packet", "min", "median", "max", "added", "Mpps"]);
    let spreads = ns
        .iter()
        .map(|ns| Spread::of(ns.iter().copied()).context("no rounds"))
        .collect::<Result<Vec<_>>>()?;
    for (name, spread) in names.iter().zip(&spreads) {
        table.row(vec![
            (*name).to_owned(),
            format!("{:.0}", spread.min),
            format!("{:.0}", spread.median),
            format!("{:.0}", spread.max),
            format!("{:.0}", spread.median - spreads[0].median),
            format!("{:.2}", 1000.0 / spread.median),
        ]);
    }
    let [taken, ours, _, theirs, _] = &ns;
    let of_rounds =
        |ratio: &dyn Fn(usize) -> f64| Spread::of((0..ours.len()).map(ratio)).context("no rounds");
    let ratio = of_rounds(&|at| theirs[at] / ours[at])?;
    let added = of_rounds(&|at| (theirs[at] - taken[at]) / (ours[at] - taken[at]))?;
    screen.print(&table.render())?;
    screen.print(&format!(
        "\n  packets per second, redirect to tunnel: {:.2} in the median ({:.2} to {:.2})\n  \
         what the tunnel adds, to what the redirect adds: {:.2} ({:.2} to {:.2})\n  \
         what both have in common, receiving the frame, is {:.0} of {:.0} and {:.0} ns",
        ratio.median,
        ratio.min,
        ratio.max,
        added.median,
        added.min,
        added.max,
        spreads[0].median,
        spreads[1].median,
        spreads[3].median
    ))?;
    rig.tell_programs(screen)?;
    program_bench(screen, rig.lab.network(), &rig.spec()?)?;
    Ok(ratio.median)
}

struct Rig {
    sender: Sender,
    counter: Counter,
    _tap: std::fs::File,
    packets: u32,
    lab: Lab,
}

impl Rig {
    fn new(options: &RedirectBenchOptions) -> Result<Self> {
        let lab = Lab::new(LabConfig::default())?;
        let (a, fabric) = (&lab.network().a, &lab.network().fabric);
        let port = Node::A.fabric_port();
        let tap = a.run(|| open_tap(TAP))??;
        let ethernet = options.tunnel == "vxlan";
        let kind = match ethernet {
            true => format!("address {TUNNEL_MAC} type vxlan id 11 dstport 4789 dev {UNDERLAY}"),
            false => format!("type {}", options.tunnel),
        };
        let (here, there) = (Node::A.ipv4(), Node::B.ipv4());
        let gateway = mac(fabric, port)?;
        a.ip(&format!(
            "link add {TUNNEL} {kind} remote {there} local {here}
             link set {TUNNEL} up
             neigh replace 10.0.1.1 lladdr {} dev {UNDERLAY} nud permanent
             neigh replace {GUEST_V4} lladdr {GUEST_MAC} dev {TAP} nud permanent",
            text(gateway)
        ))?;
        if ethernet {
            a.ip(&format!(
                "neigh replace {GUEST_V4} lladdr {TUNNEL_MAC} dev {TUNNEL} nud permanent"
            ))?;
        }
        let counter = Counter::new()?;
        bpf::filter(a, UNDERLAY, Way::Out, &taker(counter.descriptor()))?;
        let frame = udp_frame(mac(a, UNDERLAY)?, gateway, (CLIENT_V4, GUEST_V4), PAYLOAD)?;
        Ok(Self {
            sender: Sender::new(a, UNDERLAY, frame)?,
            counter,
            _tap: tap,
            packets: options.packets,
            lab,
        })
    }

    fn ns_per_packet(&self, arm: Arm) -> Result<f64> {
        let a = &self.lab.network().a;
        let device = match arm {
            Arm::Tunnel | Arm::Bare => TUNNEL,
            Arm::Taken | Arm::Redirected | Arm::Copied => TAP,
        };
        a.ip(&format!("route replace {GUEST_V4}/32 dev {device}"))?;
        if !arm.is_armed() {
            return self.timed(&self.counter);
        }
        let spec = self.spec()?;
        let armed = a.run(|| SourceDataplane::arm(&spec))??;
        let timed = self.timed_armed(arm, &armed);
        a.run(|| armed.remove())??;
        timed
    }

    /// What each of our programs takes for a redirected packet, by the kernel's own clock, and how often it runs.
    fn tell_programs(&self, screen: &Screen) -> Result<()> {
        let a = &self.lab.network().a;
        a.ip(&format!("route replace {GUEST_V4}/32 dev {TAP}"))?;
        let spec = self.spec()?;
        let others = programs();
        let armed = a.run(|| SourceDataplane::arm(&spec))??;
        let stats = enable_stats(Stats::RunTime)?;
        let timed = self.timed_armed(Arm::Redirected, &armed);
        let times = program_times(&others);
        drop(stats);
        a.run(|| armed.remove())??;
        timed?;
        let mut table = Table::new(&["program", "runs a packet", "ns a run"]);
        let packets = f64::from(self.packets + self.packets / 20);
        for (name, runs, took) in times {
            table.row(vec![
                name,
                format!("{:.1}", runs as f64 / packets),
                format!("{:.0}", took.as_secs_f64() * 1e9 / runs as f64),
            ]);
        }
        screen.print(&format!("\n{}", table.render()))
    }

    fn timed_armed(&self, arm: Arm, armed: &SourceDataplane) -> Result<f64> {
        if arm == Arm::Taken {
            let counter = Counter::new()?;
            let a = &self.lab.network().a;
            bpf::filter(a, UNDERLAY, Way::In, &taker(counter.descriptor()))?;
            let timed = self.timed(&counter);
            bpf::detach_filters(a, UNDERLAY, Way::In)?;
            return timed;
        }
        if matches!(arm, Arm::Redirected | Arm::Copied) {
            armed.flip()?;
        }
        if arm == Arm::Redirected {
            armed.stop_retaining()?;
        }
        self.timed(&self.counter)
    }

    /// Sends all, which have to come through.
    fn timed(&self, counter: &Counter) -> Result<f64> {
        self.sender.send(self.packets / 20)?;
        let before = counter.get()?;
        let took = self.sender.send(self.packets)?;
        let through = counter.get()? - before;
        ensure!(
            through >= self.packets.into(),
            "of {} packets came {through}",
            self.packets
        );
        Ok(took.as_secs_f64() * 1e9 / f64::from(self.packets))
    }

    fn spec(&self) -> Result<SourceSpec> {
        let a = &self.lab.network().a;
        let netns_inum = u32::try_from(a.inode()?)?;
        let index =
            |device: &str| -> Result<u32> { Ok(u32::try_from(a.run(|| bpf::index(device))??)?) };
        let tap = index(TAP)?;
        Ok(SourceSpec {
            session: SessionId(u64::from(std::process::id()) << 32 | 0xbe),
            hook_ifindex: tap,
            pod: None,
            detour: None,
            netns_inum,
            vm_addresses: vec![IpAddr::V4(GUEST_V4)],
            vm_mac: [2, 0, 0, 0, 0, 5],
            encap: Encap::Ip {
                outer: Outer::Ip,
                underlay_ifindex: index(UNDERLAY)?,
                local: vec![IpAddr::V4(Node::A.ipv4())],
                remote: vec![IpAddr::V4(Node::B.ipv4())],
                path_mtu: PATH_MTU,
                oversize_ifindex: None,
            },
            tap: TapLocation {
                netns_inum,
                ifindex: tap,
            },
            attach: AttachPreference::Auto,
        })
    }
}

/// What the kernel has counted for our programs that are not among those: runs, and the time that they took.
fn program_times(others: &[u32]) -> Vec<(String, u64, Duration)> {
    loaded_programs()
        .flatten()
        .filter(|program| !others.contains(&program.id()))
        .filter_map(|program| {
            let name = program.name_as_str()?.to_owned();
            let is_ours = name.starts_with("ktm_") && program.run_count() > 0;
            is_ours.then(|| (name, program.run_count(), program.run_time()))
        })
        .collect()
}

/// A device's Ethernet address.
fn mac(netns: &Netns, device: &str) -> Result<[u8; 6]> {
    let told = netns.command("ip", &["-j", "link", "show", "dev", device])?;
    let links: serde_json::Value = serde_json::from_str(&told).context("parse ip's JSON")?;
    let text = links[0]["address"].as_str().context("an address")?;
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("six bytes")
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
