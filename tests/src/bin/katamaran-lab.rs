//! The lab by hand: boots guests, measures baselines.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use katamaran_tests::lab::{
    Lab, LabConfig, Node, QemuVersion, Start, remove_labs_on_signals, sweep,
};

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
    },
    /// Remove what killed labs left behind
    Sweep,
}

fn main() -> Result<()> {
    remove_labs_on_signals()?;
    match Cli::parse().command {
        Command::BootCheck { qemu } => boot_check(qemu),
        Command::Sweep => {
            for id in sweep()? {
                print(&format!("swept {id}"));
            }
            Ok(())
        }
    }
}

fn boot_check(qemu: QemuVersion) -> Result<()> {
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
    Ok(())
}

/// Results go to standard output.
#[expect(clippy::print_stdout, reason = "a command's result is what it prints")]
fn print(line: &str) {
    println!("{line}");
}
