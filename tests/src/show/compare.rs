//! The same VM, moved in three ways, in one table.

use anyhow::Result;

use super::figures::{gaps, ms, report, udp, verdict};
use super::scene::{PLAIN_DOWNTIME_LIMIT_MS, Scene};
use super::screen::Screen;
use super::table::Table;
use crate::run::{Baseline, MigrationRun};

/// Runs the two simpler ways and prints them beside a run by katamaran.
///
/// # Errors
///
/// When nobody reads what is printed. What comes out of a run, however bad, is a result.
pub(super) fn compare(screen: &Screen, scene: &Scene, katamaran: &MigrationRun) -> Result<()> {
    screen.print("")?;
    screen.step(
        "compare",
        "the same VM and traffic, by plain QEMU migration",
    )?;
    let plain = scene.by_plain_means(Baseline::Plain);
    screen.step(
        "compare",
        "the same, with a tunnel to B once the VM has stopped",
    )?;
    let after_stop = scene.by_plain_means(Baseline::AfterStop);
    let mut table = Table::new(&[
        "",
        "lost",
        "dup",
        "reord",
        "gap",
        "calm gap",
        "downtime",
        "TCP stall",
        "verdict",
    ]);
    for (name, run) in [("plain QEMU", &plain), ("after STOP", &after_stop)] {
        match run {
            Ok(run) => table.row(row(name, run)),
            Err(error) => {
                table.row(vec![name.to_owned(), "FAILED".to_owned()]);
                screen.print(&format!("  {name}: {error:#}"))?;
            }
        }
    }
    table.row(row("katamaran", katamaran));
    screen.print("")?;
    screen.print(&table.render())?;
    screen.print(&format!(
        "
  plain QEMU  `migrate` with downtime-limit {PLAIN_DOWNTIME_LIMIT_MS}; the route is moved at RESUME
  after STOP  the same, and a tunnel to the new node when STOP is seen
  gap         ms: the client's longest wait for an answer within 1 s of the STOP;
              calm: the same in 2 s of traffic before the migration"
    ))
}

fn row(name: &str, run: &MigrationRun) -> Vec<String> {
    let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let gaps = gaps(run);
    let tcp = run.client.tcp().next();
    vec![
        name.to_owned(),
        count(udp(run).map(|udp| udp.lost)),
        count(udp(run).map(|udp| udp.duplicated)),
        count(udp(run).map(|udp| udp.reordered)),
        ms(gaps.map(|gaps| gaps.cutover.ms())),
        ms(gaps.and_then(|gaps| gaps.calm_ms)),
        ms(run.downtime_ms),
        match tcp {
            Some(tcp) if !tcp.intact => "BROKEN".to_owned(),
            tcp => ms(tcp.map(|tcp| tcp.longest_stall_ms)),
        },
        verdict(report(run).as_ref()).to_owned(),
    ]
}
