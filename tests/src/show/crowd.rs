//! Many VMs of one node, migrated at the same time.

use anyhow::Result;
use clap::Args;

use super::figures::ms;
use super::screen::Screen;
use super::table::Table;
use crate::lab::QemuVersion;
use crate::run::{self, Member, run_crowd};

/// What to run.
#[derive(Debug, Clone, Copy, Args)]
pub struct CrowdOptions {
    /// How many VMs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(2..=200))]
    vms: u8,
    /// How many of them are called back (SIGINT) on the way
    #[arg(long, default_value_t = 4)]
    called_back: u8,
    /// QEMU version: 7.2, 10.0 or stand-in, which needs no guest
    #[arg(long, default_value = "stand-in")]
    qemu: QemuVersion,
    /// UDP packets per second to each VM, over each of IPv4 and IPv6
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
}

/// Migrates all of them at once, and prints a line for each. Returns whether each went or stayed as it should, nothing was lost
/// and nothing is left.
///
/// # Errors
///
/// When the lab fails, or nobody reads what is printed.
pub fn crowd(screen: &Screen, options: CrowdOptions) -> Result<bool> {
    screen.print(&format!(
        "{} VMs of one node, all migrated to the other at once, {} of them called back; {} UDP packets/s to each over IPv4, as \
         many over IPv6\n",
        options.vms, options.called_back, options.pps
    ))?;
    let run = run_crowd(run::CrowdOptions {
        vms: options.vms,
        called_back: options.called_back,
        qemu: options.qemu,
        pps: options.pps,
    })?;
    let mut table = Table::new(&[
        "VM",
        "called back",
        "runs on",
        "outcome",
        "pause ms",
        "sent",
        "lost",
        "dup",
        "reordered",
    ]);
    for member in &run.members {
        table.row(row(member));
    }
    screen.print(&table.render())?;
    let mut bad = 0;
    for member in &run.members {
        let problems = member.problems();
        if !problems.is_empty() {
            bad += 1;
            screen.print(&format!(
                "BAD  VM {}: {}\n{}\n{}",
                member.number,
                problems.join("; "),
                member.source.stderr,
                member.dest.stderr
            ))?;
        }
    }
    for leak in &run.leaks {
        screen.print(&format!("LEFT {leak}"))?;
    }
    let moved = run.members.iter().filter(|m| m.runs == [false, true]);
    let stayed = run.members.iter().filter(|m| m.runs == [true, false]);
    screen.print(&format!(
        "\n  {} VMs, {} under way at one time, {:.1} s in all: {} moved, {} stayed, {bad} with problems, {} left behind",
        run.members.len(),
        run.at_once,
        run.took.as_secs_f64(),
        moved.count(),
        stayed.count(),
        run.leaks.len()
    ))?;
    Ok(bad == 0 && run.leaks.is_empty())
}

fn row(member: &Member) -> Vec<String> {
    let sum = |count: fn(&crate::traffic::UdpResult) -> u64| {
        member.udp.iter().map(count).sum::<u64>().to_string()
    };
    let said = |key: &str| {
        let report = member.source.report.as_ref();
        report.and_then(|r| r[key].as_str()).unwrap_or("?")
    };
    vec![
        member.number.to_string(),
        if member.called_back { "yes" } else { "" }.to_owned(),
        match member.runs {
            [true, false] => "A",
            [false, true] => "B",
            [true, true] => "BOTH",
            [false, false] => "NONE",
        }
        .to_owned(),
        match said("outcome") {
            "migrated" => said("verdict"),
            other => other,
        }
        .to_owned(),
        ms(member.downtime_ms),
        sum(|udp| udp.sent),
        sum(|udp| udp.lost),
        sum(|udp| udp.duplicated),
        sum(|udp| udp.reordered),
    ]
}
