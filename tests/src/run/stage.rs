//! A lab with V running on A, an empty QEMU waiting on B, and traffic on: where a migration begins.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::Client;
use super::disk::{self, DiskLoad};
use super::drives::{self, DriveOptions};
use super::result::{ClientResult, said_by_guest};
use super::timeline::Timeline;
use crate::lab::{Event, Guest, Lab, LabConfig, Netns, Node, QemuVersion, Qmp, Start};
use crate::standin::STOP_WHEN_HELD;
use crate::traffic::{AckCollector, Mark, now_ns};

/// Also for a guest that is emulated on an emulated machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// Traffic that must have come back before a migration may begin.
const WARM_UP_PACKETS: u64 = 200;
/// Records that every disk must have acknowledged before a migration may begin.
const WARM_UP_RECORDS: u64 = 10;
/// Traffic that must come back after the end.
const TAIL_PACKETS: u64 = 200;
/// How long traffic may take to come back.
pub(super) const TRAFFIC_DEADLINE: Duration = Duration::from_secs(10);

/// Which streams run during a migration; 0 and `None` mean without.
#[derive(Debug, Clone)]
pub struct TrafficSpec {
    /// UDP packets per second over IPv4.
    pub pps_v4: u32,
    /// UDP packets per second over IPv6.
    pub pps_v6: u32,
    /// UDP packets per second to each address of V's second network card.
    pub pps_second: u32,
    /// Bytes of UDP payload.
    pub size: usize,
    /// Marks some of the UDP packets.
    pub mark: Option<Mark>,
    /// UDP packets of each stream that are sent at once, beside the others, when V has stopped.
    pub burst_at_stop: u64,
    /// Bytes per second over TCP on IPv4.
    pub tcp_v4: Option<u64>,
    /// Bytes per second over TCP on IPv6.
    pub tcp_v6: Option<u64>,
    /// UDP packets per second through the service's IPv4 address; takes a guarded lab.
    pub pps_service: u32,
    /// Bytes per second over TCP through each of the service's addresses; takes a guarded lab.
    pub tcp_service: Option<u64>,
    /// What V writes to each of its disks.
    pub disk: Option<DiskLoad>,
}

impl TrafficSpec {
    /// In few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let udp = self.pps_v4 + self.pps_v6 + self.pps_service + 2 * self.pps_second;
        let tcp: u64 = [self.tcp_v4, self.tcp_v6, self.tcp_service, self.tcp_service]
            .iter()
            .flatten()
            .sum();
        format!(
            "gets {udp} UDP packets/s and {:.1} MB/s of TCP echoed",
            tcp as f64 / 1e6
        )
    }
}

impl Default for TrafficSpec {
    fn default() -> Self {
        Self {
            disk: None,
            pps_v4: 2000,
            pps_v6: 0,
            pps_service: 0,
            pps_second: 0,
            size: 100,
            mark: None,
            burst_at_stop: 0,
            tcp_v4: None,
            tcp_v6: None,
            tcp_service: None,
        }
    }
}

/// V's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// None.
    Diskless,
    /// Raw images on each node, of so many MiB: have to be mirrored.
    Local(u64),
    /// Raw images that both nodes open, of so many MiB.
    Shared(u64),
}

/// How QEMU is brought to stop V by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddle {
    /// As soon as it migrates: somebody raises its downtime-limit.
    Limit,
    /// The stand-in only: when nobody has taken anything of its stream for so many ms.
    WhenHeld(u64),
}

/// What the stage is set with.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// The lab.
    pub lab: LabConfig,
    /// The traffic.
    pub traffic: TrafficSpec,
    /// The disks.
    pub storage: Storage,
    /// How the disks are made.
    pub drives: DriveOptions,
    /// How the QEMU on B starts.
    pub incoming: Start,
    /// Has QEMU on A stop V by itself.
    pub meddle: Option<Meddle>,
    /// For how long the traffic has the machine to itself before the migration, to compare with.
    pub calm: Duration,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            lab: LabConfig::default(),
            traffic: TrafficSpec::default(),
            storage: Storage::Diskless,
            drives: DriveOptions::default(),
            incoming: Start::Incoming,
            meddle: None,
            calm: Duration::ZERO,
        }
    }
}

impl StageOptions {
    /// The default stage with this QEMU and rate of UDP packets over IPv4.
    #[must_use]
    pub fn new(qemu: QemuVersion, pps_v4: u32) -> Self {
        Self {
            lab: LabConfig {
                qemu,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4,
                ..TrafficSpec::default()
            },
            ..Self::default()
        }
    }
}

/// Everything in place for a migration. Fields drop in this order: traffic, guests, lab.
#[derive(Debug)]
pub struct Stage {
    /// The traffic, until somebody stops it.
    pub client: Option<Client>,
    /// V.
    pub guest_a: Guest,
    /// Where V is to go.
    pub guest_b: Guest,
    /// The lab's connection to V's QEMU.
    pub qmp_a: Qmp,
    /// The lab's connection to the waiting QEMU.
    pub qmp_b: Qmp,
    /// V's images on A and on B, one pair per drive.
    pub drives: Vec<[PathBuf; 2]>,
    /// The namespaces.
    pub lab: Lab,
    /// What V had received before the traffic.
    probes: Option<u64>,
    /// What it was set with.
    pub options: StageOptions,
}

impl Stage {
    /// Boots V, starts the waiting QEMU, and lets the traffic warm up.
    ///
    /// # Errors
    ///
    /// When any of these does not come up in time.
    pub fn set(options: StageOptions) -> Result<Self> {
        Self::set_and_tell(options, |_, _| Ok(()))
    }

    /// The same, and tells of each step: about whom, and what.
    ///
    /// # Errors
    ///
    /// Also when nobody can be told.
    pub fn set_and_tell(
        options: StageOptions,
        mut tell: impl FnMut(&str, &str) -> Result<()>,
    ) -> Result<Self> {
        let lab = Lab::new(options.lab.clone())?;
        tell("lab", "client, router, node A and node B are connected")?;
        let drives = drives::make(&lab, options.storage, options.drives)?;
        let guest_a = lab.start_guest(Node::A, Start::Boot, &images(&drives, Node::A))?;
        let guest_b = lab.start_guest(Node::B, options.incoming, &images(&drives, Node::B))?;
        tell("VM", "boots on A; an empty QEMU waits for it on B")?;
        lab.wait_for_echo(Instant::now() + BOOT_DEADLINE)
            .with_context(|| guest_a.output())?;
        let (qmp_a, qmp_b) = (guest_a.qmp()?, guest_b.qmp()?);
        tell("VM", "is up")?;
        let probes = said_by_guest(&lab.guest_command("status")?, "udp_received");
        let mut client = Client::start(&lab, &options.traffic)?;
        if let Some(load) = options.traffic.disk {
            let acks = AckCollector::start(&lab.network().client, drives.len())?;
            disk::start(&lab, load, drives.len(), &acks)?;
            client.acks = Some(acks);
            client.wait_for_writes(WARM_UP_RECORDS)?;
        }
        client.wait_for_more(WARM_UP_PACKETS)?;
        tell("client", &options.traffic.describe())?;
        client.stay_calm(options.calm);
        Ok(Self {
            client: Some(client),
            guest_a,
            guest_b,
            qmp_a,
            qmp_b,
            drives,
            lab,
            probes,
            options,
        })
    }

    /// A new QEMU on B if the last one has ended; one that was not asked for anything yet is as good as new.
    ///
    /// # Errors
    ///
    /// When it does not come up, or waits for nothing.
    pub fn renew_guest_b(&mut self) -> Result<()> {
        if self.guest_b.process().try_wait()?.is_some() {
            self.guest_b = self.lab.start_guest(Node::B, Start::Incoming, &[])?;
            self.qmp_b = self.guest_b.qmp()?;
        }
        let status = self.qmp_b.command("query-status", Value::Null)?;
        anyhow::ensure!(
            status["status"] == "inmigrate",
            "B's QEMU waits for no VM: {status}"
        );
        Ok(())
    }

    /// V has come to B: what was B is A from now on, with a new QEMU waiting where V was. V has no disks.
    ///
    /// # Errors
    ///
    /// As [`Stage::renew_guest_b`].
    pub fn turn_round(&mut self) -> Result<()> {
        self.lab.swap_nodes();
        std::mem::swap(&mut self.guest_a, &mut self.guest_b);
        std::mem::swap(&mut self.qmp_a, &mut self.qmp_b);
        self.renew_guest_b()
    }

    /// The namespaces of both nodes, with V's own.
    pub fn nodes(&self) -> impl Iterator<Item = &Netns> + Clone {
        self.lab.network().node_side()
    }

    /// Takes note of what the two QEMUs report for the next `wait`, and moves the fabric's route
    /// once RESUME on B is `converge_after` old.
    ///
    /// # Errors
    ///
    /// When the route can't be moved.
    pub fn watch(
        &mut self,
        timeline: &mut Timeline,
        wait: Duration,
        converge_after: Duration,
    ) -> Result<()> {
        let half = wait / 2;
        // A QEMU that is gone has nothing more to report: its connection just stays silent.
        for event in self
            .qmp_a
            .events_until(Instant::now() + half)
            .unwrap_or_default()
        {
            let active = event.name == "MIGRATION" && event.data["status"] == "active";
            self.note_of_a(timeline, event);
            if let Some(meddle) = self.options.meddle.filter(|_| active) {
                self.meddle(meddle)?;
            }
        }
        for event in self
            .qmp_b
            .events_until(Instant::now() + half)
            .unwrap_or_default()
        {
            timeline.note(Node::B, event);
        }
        let due = timeline.resume_ns.map(|at| at + ns(converge_after));
        // A router that has lost a node sends nothing there.
        let cut = self.lab.is_cut();
        if timeline.converged_ns.is_none() && !cut && due.is_some_and(|due| now_ns() >= due) {
            self.lab.converge()?;
            timeline.converged_ns = Some(now_ns());
        }
        Ok(())
    }
}

impl Stage {
    fn meddle(&mut self, meddle: Meddle) -> Result<()> {
        let mut set = |parameters| self.qmp_a.command("migrate-set-parameters", parameters);
        match meddle {
            Meddle::Limit => {
                set(json!({"downtime-limit": 60_000, "avail-switchover-bandwidth": 0}))
                    .or_else(|_too_old| set(json!({"downtime-limit": 60_000})))
            }
            Meddle::WhenHeld(limit_ms) => set(json!({ STOP_WHEN_HELD: limit_ms })),
        }?;
        Ok(())
    }

    /// Takes note of what A's QEMU reports. With V's STOP comes the burst, if there is to be one.
    pub(super) fn note_of_a(&self, timeline: &mut Timeline, event: Event) {
        if event.name == "STOP" && timeline.stop_ns.is_none() {
            for udp in self.client.iter().flat_map(Client::udp) {
                udp.burst(self.options.traffic.burst_at_stop);
            }
        }
        timeline.note(Node::A, event);
    }

    /// Lets some more traffic come back, stops it and settles.
    ///
    /// Silence is a result as well, so it comes with what can be known about its cause.
    ///
    /// # Errors
    ///
    /// When a socket failed, or the traffic was stopped before.
    pub fn finish_traffic(&mut self) -> Result<(ClientResult, Option<String>)> {
        let mut client = self
            .client
            .take()
            .context("the traffic was stopped before")?;
        let acks = client.acks.take();
        let silence = client.wait_for_more(TAIL_PACKETS).err().map(|err| {
            let mut text = format!(
                "{err}
"
            );
            for (node, qmp, guest) in [
                (Node::A, &mut self.qmp_a, &self.guest_a),
                (Node::B, &mut self.qmp_b, &self.guest_b),
            ] {
                let status = qmp.command("query-status", Value::Null);
                let status =
                    status.map_or_else(|err| format!("{err:#}"), |status| status.to_string());
                text.push_str(&format!("{node:?}: {status}\n{}\n", guest.output()));
            }
            text
        });
        let mut result = client.stop()?;
        if let (Some(load), Some(acks)) = (self.options.traffic.disk, acks) {
            let status = self.qmp_b.command("query-status", Value::Null);
            let node = match status {
                // It has run there also if it stands still because of an I/O error.
                Ok(status) if status["running"] == true || status["status"] == "io-error" => {
                    Node::B
                }
                _ => Node::A,
            };
            let images: Vec<PathBuf> = images(&self.drives, node)
                .into_iter()
                .map(Path::to_owned)
                .collect();
            let options = self.options.drives;
            result.disk = Some(disk::settle(&self.lab, load, options, &images, acks)?);
        }
        Ok((result, silence))
    }
}

impl Stage {
    /// How many of the client's UDP packets V has received, by what it says of itself in the end.
    #[must_use]
    pub fn received_by_guest(&self, status: Option<&str>) -> Option<u64> {
        said_by_guest(status?, "udp_received")?.checked_sub(self.probes?)
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The images that a node opens.
fn images(drives: &[[PathBuf; 2]], node: Node) -> Vec<&Path> {
    drives
        .iter()
        .map(|[a, b]| match node {
            Node::A => a.as_path(),
            Node::B => b.as_path(),
        })
        .collect()
}
