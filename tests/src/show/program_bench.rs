//! What each program takes for a packet, with few and with many VMs' addresses in its maps (`BPF_PROG_TEST_RUN`).
//!
//! Some change the packet, so each is run once on a packet of its own. Planes with few and with many addresses are armed at the same
//! time and take turns. A program that does nothing takes what the kernel's clock and the call do.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, loaded_programs};
use katamaran::ebpf::{
    AttachPreference, DestinationDataplane, DestinationSpec, Ingress, Outer, SourceDataplane,
    SourceSpec, TapLocation,
};
use katamaran::session_id::SessionId;

use super::screen::Screen;
use super::spread::Spread;
use super::table::Table;
use crate::bpf;
use crate::lab::{CLIENT_V4, GUEST_V4, Netns, Network, Node, TAP, UNDERLAY};
use crate::traffic::frames::{in_ipip, udp_frame};

/// How many VMs' addresses.
const VMS: [u16; 3] = [1, 100, 1000];
const ROUNDS: usize = 21;
/// Of each program in a round.
const RUNS: usize = 400;
/// `TC_ACT_UNSPEC`, `TC_ACT_REDIRECT`
const GO_ON: i32 = -1;
const REDIRECT: i32 = 7;

/// Both sides' programs, with so many addresses.
struct Planes {
    counting: SourceDataplane,
    redirecting: SourceDataplane,
    destination: DestinationDataplane,
    subjects: [ProgramFd; Subject::ALL.len()],
}

/// A program at its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Counting,
    Redirecting,
    Deliver,
    Tap,
}

impl Subject {
    const ALL: [Self; 4] = [Self::Counting, Self::Redirecting, Self::Deliver, Self::Tap];

    fn name(self) -> &'static str {
        match self {
            Self::Counting => "ktm_source, counting",
            Self::Redirecting => "ktm_source, redirecting",
            Self::Deliver => "ktm_deliver",
            Self::Tap => "ktm_tap",
        }
    }

    /// What it says when it has done its work.
    fn verdict(self) -> i32 {
        match self {
            Self::Counting | Self::Tap => GO_ON,
            Self::Redirecting | Self::Deliver => REDIRECT,
        }
    }

    fn frame(self) -> Result<Vec<u8>> {
        // A test's packet comes in through `lo`, whose address is all zeros.
        let plain = udp_frame([0; 6], [2, 0, 0, 0, 0, 1], (CLIENT_V4, GUEST_V4), 100)?;
        match self {
            Self::Deliver => in_ipip(&plain, (Node::A.ipv4(), Node::B.ipv4())),
            Self::Counting | Self::Redirecting | Self::Tap => Ok(plain),
        }
    }
}

/// Measures and prints.
///
/// # Errors
///
/// When programs can't be armed, or don't do their work.
pub(super) fn program_bench(screen: &Screen, network: &Network, source: &SourceSpec) -> Result<()> {
    let planes = VMS.map(|vms| Planes::arm(network, source, vms));
    let planes = planes.into_iter().collect::<Result<Vec<_>>>()?;
    let measured = measure(&planes);
    for plane in planes {
        plane.remove(network)?;
    }
    let (empty, ns) = measured?;
    let mut table = Table::new(&["ns a run", "1 VM", "100 VMs", "1,000 VMs", "to 1 VM"]);
    for (subject, of_vms) in Subject::ALL.iter().zip(&ns) {
        let median = |runs: &Vec<f64>| Spread::of(runs.iter().copied()).map(|s| s.median);
        let medians: Vec<f64> = of_vms.iter().filter_map(median).collect();
        let ratio = |at: usize| {
            let rounds = of_vms[at].iter().zip(&of_vms[0]);
            Spread::of(rounds.map(|(many, one)| many / one)).context("no rounds")
        };
        let mut row = vec![subject.name().to_owned()];
        row.extend(medians.iter().map(|ns| format!("{ns:.0}")));
        row.push(format!("{:.2}, {:.2}", ratio(1)?.median, ratio(2)?.median));
        table.row(row);
    }
    let empty = Spread::of(empty).context("no rounds")?.median;
    screen.print(&format!(
        "\n{}\n  each run of a program with a packet of its own; {empty:.0} of these ns are the clock's and the call's",
        table.render()
    ))
}

/// The medians of each round: of a program that does nothing, and of each subject with each number of VMs.
type Measured = (Vec<f64>, Vec<Vec<Vec<f64>>>);

fn measure(planes: &[Planes]) -> Result<Measured> {
    let nothing = bpf::nothing(GO_ON)?;
    let frame = Subject::Tap.frame()?;
    let mut empty = Vec::new();
    let mut ns = vec![vec![Vec::new(); planes.len()]; Subject::ALL.len()];
    for round in 0..ROUNDS {
        empty.push(median_of_runs(nothing.as_fd(), &frame, GO_ON)?);
        for (at, subject) in Subject::ALL.into_iter().enumerate() {
            let frame = subject.frame()?;
            // Who goes first takes turns.
            for turn in 0..planes.len() {
                let which = (round + turn) % planes.len();
                let program = planes[which].subjects[at].as_fd();
                let took = median_of_runs(program, &frame, subject.verdict());
                ns[at][which].push(took.with_context(|| subject.name())?);
            }
        }
    }
    Ok((empty, ns))
}

fn median_of_runs(program: std::os::fd::BorrowedFd<'_>, frame: &[u8], verdict: i32) -> Result<f64> {
    let mut runs = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let run = bpf::test_run(program, frame)?;
        ensure!(
            run.returned == verdict,
            "it returned {}, not {verdict}",
            run.returned
        );
        runs.push(f64::from(run.nanoseconds));
    }
    Ok(Spread::of(runs).context("no runs")?.median)
}

impl Planes {
    fn arm(network: &Network, source: &SourceSpec, vms: u16) -> Result<Self> {
        let (a, b) = (&network.a, &network.b);
        let addresses = addresses(vms);
        let id = |kind: u64| SessionId(source.session.0 ^ u64::from(vms) << 8 ^ kind << 4);
        let spec = |kind| SourceSpec {
            session: id(kind),
            vm_addresses: addresses.clone(),
            ..source.clone()
        };
        let (counting, count) = with_program(a, "ktm_source", || SourceDataplane::arm(&spec(1)))?;
        let (redirecting, redirect) =
            with_program(a, "ktm_source", || SourceDataplane::arm(&spec(2)))?;
        redirecting.flip()?;
        redirecting.stop_retaining()?;
        let spec = destination(network, id(3), addresses)?;
        let before = programs();
        let destination = b.run(|| DestinationDataplane::arm(&spec))??;
        let [deliver, tap] = ["ktm_deliver", "ktm_tap"].map(|name| new_program(&before, name));
        Ok(Self {
            counting,
            redirecting,
            destination,
            subjects: [count, redirect, deliver?, tap?],
        })
    }

    fn remove(self, network: &Network) -> Result<()> {
        network.a.run(|| self.counting.remove())??;
        network.a.run(|| self.redirecting.remove())??;
        network.b.run(|| self.destination.remove())??;
        Ok(())
    }
}

/// V's, and those of others.
fn addresses(vms: u16) -> Vec<IpAddr> {
    let others = (1..vms).map(|n| {
        let [high, low] = n.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 245, high, low))
    });
    std::iter::once(IpAddr::V4(GUEST_V4))
        .chain(others)
        .collect()
}

fn destination(
    network: &Network,
    session: SessionId,
    vm_addresses: Vec<IpAddr>,
) -> Result<DestinationSpec> {
    let b = &network.b;
    let netns_inum = u32::try_from(b.inode()?)?;
    let index =
        |device: &str| -> Result<u32> { Ok(u32::try_from(b.run(|| bpf::index(device))??)?) };
    let ifindex = index(TAP)?;
    Ok(DestinationSpec {
        session,
        ingress: vec![Ingress::Ip {
            outer: Outer::Ip,
            underlay_ifindex: index(UNDERLAY)?,
            local: vec![IpAddr::V4(Node::B.ipv4())],
            remote: vec![IpAddr::V4(Node::A.ipv4())],
        }],
        vm_addresses,
        vm_mac: [2, 0, 0, 0, 0, 5],
        deliver_ifindex: ifindex,
        pod: None,
        netns_inum,
        tap: TapLocation {
            netns_inum,
            ifindex,
        },
        attach: AttachPreference::Auto,
    })
}

/// Arms a plane, and finds its program.
fn with_program<P: Send, E: std::error::Error + Send + Sync + 'static>(
    netns: &Netns,
    name: &str,
    arm: impl FnOnce() -> Result<P, E> + Send,
) -> Result<(P, ProgramFd)> {
    let before = programs();
    let plane = netns.run(arm)??;
    Ok((plane, new_program(&before, name)?))
}

/// The ids of all programs that are loaded.
pub(super) fn programs() -> Vec<u32> {
    let programs = loaded_programs().flatten();
    programs.map(|program| program.id()).collect()
}

fn new_program(before: &[u32], name: &str) -> Result<ProgramFd> {
    let program = loaded_programs()
        .flatten()
        .find(|program| !before.contains(&program.id()) && program.name_as_str() == Some(name));
    Ok(program.with_context(|| format!("find {name}"))?.fd()?)
}
