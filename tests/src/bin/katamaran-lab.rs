//! The lab by hand: boots guests, migrates them by katamaran or by other means, prints what was lost.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use katamaran_tests::lab::{
    GUEST_V4, GUEST_V6, Lab, LabConfig, Node, QemuVersion, Start, remove_labs_on_signals, sweep,
};
use katamaran_tests::run::{
    Baseline, BaselineOptions, DiskLoad, DriveOptions, Meddle, MigrationOptions, MigrationRun,
    StageOptions, Storage, TrafficSpec, run_baseline, run_migration,
};
use katamaran_tests::show::{
    AblationArguments, CancelOptions, ConnectionsBenchOptions, CrowdOptions, FaultOptions,
    MatrixArguments, MirrorBenchOptions, OtherKernel, RedirectBenchOptions, Scene as ShowScene,
    SceneDisks, Screen, ShuttleOptions, SoakOptions, cancel_soak, connections_bench, crowd, demo,
    fault_matrix, mirror_bench, redirect_bench, shuttle, soak,
};
use katamaran_tests::traffic::{TcpLoad, TcpTraffic, UdpLoad, UdpTraffic};

/// Two nodes, a router and a client in network namespaces, with real QEMU guests.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest, see it echo, and print how long that took
    BootCheck {
        /// QEMU version: 7.2 or 10.0
        #[arg(long, default_value = "10.0")]
        qemu: QemuVersion,
        /// Echoed UDP packets per second, afterwards; 0 for none
        #[arg(long, default_value_t = 0)]
        pps: u32,
        /// For how long
        #[arg(long, default_value_t = 3)]
        seconds: u64,
    },
    /// Migrate with katamaran
    Migrate {
        #[command(flatten)]
        scene: Scene,
        /// Milliseconds from V's RESUME until the fabric's route is moved
        #[arg(long, default_value_t = 500)]
        converge_after: u64,
        /// Another flag for the source, such as --source-arg=--downtime=20 (may be repeated)
        #[arg(long)]
        source_arg: Vec<String>,
        /// Another flag for the destination (may be repeated)
        #[arg(long)]
        dest_arg: Vec<String>,
        /// Also print what both sides logged
        #[arg(long)]
        logs: bool,
    },
    /// Migrate by plain QMP, with the network switched in a simpler way
    Baseline {
        #[command(flatten)]
        scene: Scene,
        /// How the network is switched: plain (the CNI, after RESUME), after-stop (a tunnel, on STOP), plugged or undrained
        #[arg(long, default_value = "plain")]
        kind: Baseline,
        /// QEMU's downtime-limit, in milliseconds
        #[arg(long, default_value_t = 20)]
        downtime_limit: u64,
        /// QEMU's max-bandwidth, in bytes per second [default: QEMU's own]
        #[arg(long)]
        max_bandwidth: Option<u64>,
        /// Milliseconds from V's RESUME until the fabric's route is moved
        #[arg(long, default_value_t = 0)]
        converge_after: u64,
    },
    /// Show one migration step by step: what katamaran does, and what a client notices
    Demo {
        /// QEMU version: 7.2 or 10.0
        #[arg(long, default_value = "10.0")]
        qemu: QemuVersion,
        /// Also move the same VM in simpler ways, and show all of them in one table
        #[arg(long)]
        compare: bool,
        #[command(flatten)]
        load: Load,
    },
    /// Migrate again and again under load, and print a table
    Soak {
        /// Migrations per QEMU version
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// QEMU version: 7.2, 10.0 or both
        #[arg(long, default_value = "both", value_parser = parse_qemus)]
        qemu: Qemus,
        /// Follow each run by a plain QEMU migration at a downtime-limit of 20 ms
        #[arg(long, conflicts_with = "drives")]
        interleave_plain: bool,
        #[command(flatten)]
        disks: Disks,
        #[command(flatten)]
        load: Load,
    },
    /// Break something at every moment of a migration, and see where V is then, and what is lost and left
    Faults(FaultOptions),
    /// Cancel one VM's migration at random moments, under load, and see that neither VM nor traffic notices
    Cancel(CancelOptions),
    /// Migrate one VM there and back again and again under one load, and see that nothing is lost and nothing adds up
    Shuttle(ShuttleOptions),
    /// Migrate many VMs of one node at the same time, call some of them back, and see that each is clean and separate
    Crowd(CrowdOptions),
    /// Migrate once on each kernel, through each tunnel, and print a table
    Matrix(MatrixArguments),
    /// Take away from katamaran what keeps packets from being lost, one thing at a time, and see them lost
    Ablations(AblationArguments),
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Run a command under another kernel, over this machine's own root
    Vm(OtherKernel),
    /// Remove what killed labs left behind
    Sweep,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How fast katamaran mirrors a disk, beside QEMU over TCP by itself
    Mirror {
        /// QEMU version: 7.2 or 10.0
        #[arg(long, default_value = "10.0")]
        qemu: QemuVersion,
        /// MiB of the disk
        #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
        mib: u64,
        /// How many times each way
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
    /// What a redirected packet costs, beside the kernel's own tunnel
    Redirect(RedirectBenchOptions),
    /// What the VM's pause pays for carrying its connections
    Connections {
        /// QEMU version: 7.2 or 10.0
        #[arg(long, default_value = "10.0")]
        qemu: QemuVersion,
        /// Idle connections of the VM
        #[arg(long, default_value_t = 1000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(..=100_000))]
        connections: usize,
        /// How many times each way
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
}

/// What every kind of migration is played on.
#[derive(Debug, Args)]
struct Scene {
    /// QEMU version: 7.2 or 10.0
    #[arg(long, default_value = "10.0")]
    qemu: QemuVersion,
    /// UDP packets per second over IPv4
    #[arg(long, default_value_t = 2000)]
    pps: u32,
    /// UDP packets per second over IPv6
    #[arg(long, default_value_t = 0)]
    pps_v6: u32,
    /// Bytes of UDP payload
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Bytes per second over TCP on IPv4
    #[arg(long)]
    tcp: Option<u64>,
    /// Bytes per second over TCP on IPv6
    #[arg(long)]
    tcp_v6: Option<u64>,
    /// Bytes per second over TCP through the address of a service, on nodes that translate it and have a firewall
    #[arg(long)]
    tcp_service: Option<u64>,
    /// Memory that the guest dirties: MB/s over MiB, such as 60:32
    #[arg(long, value_parser = parse_pair)]
    dirty: Option<(u64, u64)>,
    /// MTU of the taps and the guest; the nodes' network has 1500
    #[arg(long, default_value_t = 1450)]
    tap_mtu: u32,
    /// MiB of guest RAM
    #[arg(long, default_value_t = 128)]
    memory: u32,
    /// Give V a disk of so many MiB on each node, to be mirrored
    #[arg(long, conflicts_with = "shared_disk")]
    disk: Option<u64>,
    /// Give V a disk of so many MiB that both nodes open
    #[arg(long)]
    shared_disk: Option<u64>,
    /// How many such disks
    #[arg(long, default_value_t = 1)]
    drives: usize,
    /// What V writes to its disk: records of 4 KiB a second over blocks, such as 200:4096
    #[arg(long, value_parser = parse_pair)]
    disk_load: Option<(u64, u64)>,
    /// Give V a second network card, and each of its two addresses so many UDP packets per second
    #[arg(long, value_name = "PPS")]
    second_nic: Option<u32>,
    /// Have the kernel move packets between tap and guest; it needs vhost-net (see `vm`)
    #[arg(long)]
    vhost: bool,
    /// Make QEMU on A stop V by itself, before katamaran does
    #[arg(long)]
    meddle: bool,
    /// How many times
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Print each run as a JSON line instead of one line for people
    #[arg(long)]
    json: bool,
}

impl Scene {
    fn stage(&self) -> StageOptions {
        StageOptions {
            lab: LabConfig {
                qemu: self.qemu,
                memory_mib: self.memory,
                tap_mtu: self.tap_mtu,
                dirty: self.dirty,
                guarded: self.tcp_service.is_some(),
                second_nic: self.second_nic.is_some(),
                vhost: self.vhost,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: self.pps,
                pps_v6: self.pps_v6,
                size: self.size,
                mark: None,
                burst_at_stop: 0,
                tcp_v4: self.tcp,
                tcp_v6: self.tcp_v6,
                pps_service: 0,
                pps_second: self.second_nic.unwrap_or(0),
                tcp_service: self.tcp_service,
                disk: self
                    .disk_load
                    .map(|(rate, blocks)| DiskLoad { rate, blocks }),
            },
            storage: match (self.disk, self.shared_disk) {
                (Some(size), _) => Storage::Local(size),
                (None, Some(size)) => Storage::Shared(size),
                (None, None) => Storage::Diskless,
            },
            drives: DriveOptions {
                count: self.drives,
                ..DriveOptions::default()
            },
            meddle: self.meddle.then_some(Meddle::Limit),
            ..StageOptions::default()
        }
    }

    fn print(&self, run: &MigrationRun) -> Result<()> {
        if self.json {
            return print(&serde_json::to_string(run)?);
        }
        print(&run.summary())?;
        run.leaks
            .iter()
            .try_for_each(|leak| print(&format!("  left behind: {leak}")))?;
        run.silence.iter().try_for_each(|silence| print(silence))
    }
}

fn main() -> Result<()> {
    remove_labs_on_signals()?;
    match Cli::parse().command {
        Command::BootCheck { qemu, pps, seconds } => boot_check(qemu, pps, seconds),
        Command::Migrate {
            scene,
            converge_after,
            source_arg,
            dest_arg,
            logs,
        } => {
            for _ in 0..scene.runs {
                let run = run_migration(MigrationOptions {
                    stage: scene.stage(),
                    converge_after: Duration::from_millis(converge_after),
                    source_args: source_arg.clone(),
                    dest_args: dest_arg.clone(),
                    ..MigrationOptions::default()
                })?;
                scene.print(&run)?;
                for (name, side) in [("source", &run.source), ("dest", &run.dest)] {
                    if let (true, Some(side)) = (logs, side) {
                        print(&format!("--- {name}\n{}{}", side.stdout, side.stderr))?;
                    }
                }
            }
            Ok(())
        }
        Command::Baseline {
            scene,
            kind,
            downtime_limit,
            max_bandwidth,
            converge_after,
        } => {
            for _ in 0..scene.runs {
                let options = BaselineOptions {
                    stage: scene.stage(),
                    downtime_limit_ms: downtime_limit,
                    max_bandwidth,
                    converge_after: Duration::from_millis(converge_after),
                    ..BaselineOptions::default()
                };
                scene.print(&run_baseline(kind, &options)?)?;
            }
            Ok(())
        }
        Command::Demo {
            qemu,
            compare,
            load,
        } => finish(demo(&Screen::default(), &load.scene(qemu, None), compare)?),
        Command::Soak {
            runs,
            qemu,
            interleave_plain,
            disks,
            load,
        } => {
            let options = SoakOptions {
                runs,
                scene: load.scene(qemu.0[0], disks.of_scene()),
                qemus: qemu.0,
                interleave_plain,
            };
            finish(soak(&Screen::default(), &options)?)
        }
        Command::Faults(options) => finish(fault_matrix(&Screen::default(), &options)?),
        Command::Bench(Bench::Mirror { qemu, mib, rounds }) => {
            let options = MirrorBenchOptions {
                qemu,
                mebibytes: mib,
                rounds,
            };
            mirror_bench(&Screen::default(), &options).map(drop)
        }
        Command::Bench(Bench::Redirect(options)) => {
            redirect_bench(&Screen::default(), &options).map(drop)
        }
        Command::Bench(Bench::Connections {
            qemu,
            connections,
            rounds,
        }) => {
            let options = ConnectionsBenchOptions {
                qemu,
                connections,
                rounds,
            };
            connections_bench(&Screen::default(), &options).map(drop)
        }
        Command::Vm(vm) => vm.run(),
        Command::Cancel(options) => finish(cancel_soak(&Screen::default(), options)?),
        Command::Shuttle(options) => finish(shuttle(&Screen::default(), options)?),
        Command::Crowd(options) => finish(crowd(&Screen::default(), options)?),
        Command::Matrix(matrix) => finish(matrix.run()?),
        Command::Ablations(ablations) => finish(ablations.run()?),
        Command::Sweep => sweep()?
            .iter()
            .try_for_each(|id| print(&format!("swept {id}"))),
    }
}

/// A bad result has been printed already.
fn finish(perfect: bool) -> Result<()> {
    if !perfect {
        std::process::exit(1);
    }
    Ok(())
}

/// QEMU versions to go through.
#[derive(Debug, Clone)]
struct Qemus(Vec<QemuVersion>);

fn parse_qemus(text: &str) -> Result<Qemus> {
    match text {
        "both" => Ok(Qemus(vec![QemuVersion::V7_2, QemuVersion::V10_0])),
        one => Ok(Qemus(vec![one.parse()?])),
    }
}

/// The load of the demo and the soak.
#[derive(Debug, Args)]
struct Load {
    /// UDP packets per second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
    /// Bytes per second over TCP; 0 for none
    #[arg(long, default_value_t = 500_000)]
    tcp: u64,
    /// Memory that the guest dirties: MB/s over MiB, such as 60:32
    #[arg(long, value_parser = parse_pair)]
    dirty: Option<(u64, u64)>,
}

impl Load {
    fn scene(&self, qemu: QemuVersion, disks: Option<SceneDisks>) -> ShowScene {
        ShowScene {
            qemu,
            disks,
            pps: self.pps,
            tcp: self.tcp,
            dirty: self.dirty,
        }
    }
}

/// The disks of the soak.
#[derive(Debug, Args)]
struct Disks {
    /// Give V so many local disks, and have it write to all of them all the time
    #[arg(long, default_value_t = 0)]
    drives: usize,
    /// MiB of each
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(4..))]
    drive_mib: u64,
    /// 4 KiB records a second to each, or max
    #[arg(long, default_value = "max", value_parser = parse_rate)]
    write_rate: u64,
}

impl Disks {
    fn of_scene(&self) -> Option<SceneDisks> {
        (self.drives > 0).then_some(SceneDisks {
            count: self.drives,
            mebibytes: self.drive_mib,
            rate: self.write_rate,
        })
    }
}

fn parse_rate(text: &str) -> Result<u64> {
    match text {
        "max" => Ok(DiskLoad::FLAT_OUT),
        number => Ok(number.parse()?),
    }
}

fn boot_check(qemu: QemuVersion, pps: u32, seconds: u64) -> Result<()> {
    let started = Instant::now();
    let lab = Lab::new(LabConfig {
        qemu,
        ..LabConfig::default()
    })?;
    let network_ms = started.elapsed().as_millis();
    let started = Instant::now();
    let guest = lab.start_guest(Node::A, Start::Boot, &[])?;
    lab.wait_for_echo(Instant::now() + Duration::from_secs(60))
        .with_context(|| guest.output())?;
    let boot_ms = started.elapsed().as_millis();
    let status = lab.guest_command("status")?;
    print(&format!(
        "qemu={qemu} network_ms={network_ms} boot_ms={boot_ms} {status}"
    ))?;
    if pps > 0 {
        let client = &lab.network().client;
        let udp = UdpTraffic::start(client, UdpLoad::new(GUEST_V4, pps))?;
        let udp6 = UdpTraffic::start(client, UdpLoad::new(GUEST_V6, 100))?;
        let tcp = TcpTraffic::start(client, TcpLoad::new(GUEST_V4, Some(1_000_000)))?;
        udp.wait_for_more(
            u64::from(pps) * seconds,
            Instant::now() + Duration::from_secs(60),
        )?;
        print(&serde_json::to_string(&udp.stop()?)?)?;
        print(&serde_json::to_string(&udp6.stop()?)?)?;
        print(&serde_json::to_string(&tcp.stop()?)?)?;
        print(&lab.guest_command("status")?)?;
    }
    Ok(())
}

fn parse_pair(text: &str) -> Result<(u64, u64)> {
    let Some((first, second)) = text.split_once(':') else {
        bail!("not two numbers with a colon between them: {text}");
    };
    Ok((first.parse()?, second.parse()?))
}

/// Results go to standard output.
fn print(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write a result")
}
