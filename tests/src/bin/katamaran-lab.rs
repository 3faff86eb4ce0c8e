//! The lab by hand: boots guests, measures baselines.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use katamaran_tests::lab::{
    GUEST_V4, GUEST_V6, Lab, LabConfig, Node, QemuVersion, Start, remove_labs_on_signals, sweep,
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
    /// Remove what killed labs left behind
    Sweep,
}

fn main() -> Result<()> {
    remove_labs_on_signals()?;
    match Cli::parse().command {
        Command::BootCheck { qemu, pps, seconds } => boot_check(qemu, pps, seconds),
        Command::Sweep => {
            for id in sweep()? {
                print(&format!("swept {id}"));
            }
            Ok(())
        }
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
    ));
    if pps > 0 {
        let client = &lab.network().client;
        let udp = UdpTraffic::start(client, UdpLoad::new(GUEST_V4, pps))?;
        let udp6 = UdpTraffic::start(client, UdpLoad::new(GUEST_V6, 100))?;
        let tcp = TcpTraffic::start(client, TcpLoad::new(GUEST_V4, Some(1_000_000)))?;
        udp.wait_for_more(u64::from(pps) * seconds, Instant::now() + Duration::from_secs(60))?;
        print(&serde_json::to_string(&udp.stop()?)?);
        print(&serde_json::to_string(&udp6.stop()?)?);
        print(&serde_json::to_string(&tcp.stop()?)?);
    }
    Ok(())
}

/// Results go to standard output.
#[expect(clippy::print_stdout, reason = "a command's result is what it prints")]
fn print(line: &str) {
    println!("{line}");
}
