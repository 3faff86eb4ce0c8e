//! One migration, step by step, for a person to watch.

use anyhow::Result;

use super::compare::compare;
use super::cutover;
use super::figures::{Gaps, faults, gaps, ms, report, thousands, udp};
use super::live::Follower;
use super::scene::Scene;
use super::screen::Screen;
use crate::lab::Node;
use crate::run::{Migration, MigrationOptions, MigrationRun, Stage, Stderr, settle};

/// Why the wait is longer than the blackout.
const COLD_START: &str = "    (beyond the release it is mostly the emulator that translates the \
guest's\n     code anew on B; a plain QEMU migration has it, too)";

const DAY_US: u64 = 86_400_000_000;

/// Migrates once with everything shown, and compares it with simpler ways if asked to. Returns whether
/// katamaran's migration was perfect.
///
/// # Errors
///
/// When the stage can't be set or a migration does not end; a bad migration is a result.
pub fn demo(screen: &Screen, scene: &Scene, compare_too: bool) -> Result<bool> {
    screen.print(&format!(
        "A VM in QEMU {} moves from node A to node B while a client talks to it.\n\
         Nodes, router and client are network namespaces; everything else is real.\n",
        scene.qemu
    ))?;
    let run = migrate(screen, scene)?;
    screen.print("")?;
    if let Some(side) = &run.source {
        screen.print(side.stdout.trim_end())?;
    }
    let gaps = gaps(&run);
    if let Some(cutover) = report(&run).map(|report| report.cutover) {
        let client = udp(&run).zip(gaps).zip(cutover.flip_us);
        let answers = client.and_then(|((udp, gaps), flip_us)| {
            cutover::answers(flip_us, &udp.record, gaps.cutover)
        });
        for picture in cutover::moments(&cutover).iter().chain(&answers) {
            screen.print(&format!("\n{picture}"))?;
        }
        if answers.is_some() {
            screen.print(COLD_START)?;
        }
    }
    screen.print(&format!("\n{}", account(&run, gaps)))?;
    if compare_too {
        compare(screen, scene, &run)?;
    }
    let faults = faults(&run);
    screen.print("")?;
    for fault in &faults {
        screen.print(&format!("  NOT PERFECT: {fault}"))?;
    }
    Ok(faults.is_empty())
}

fn migrate(screen: &Screen, scene: &Scene) -> Result<MigrationRun> {
    let mut options = scene.migration();
    let live = screen.is_live();
    if live {
        // The bar is the source's own; its log lines would only tear it.
        options.source_stderr = Stderr::Ours;
        options.source_args.push("--log-level=warn".to_owned());
    }
    let mut stage = Stage::set_and_tell(options.stage.clone(), |who, what| screen.step(who, what))?;
    screen.step("katamaran", "--mode dest starts on B, --mode source on A")?;
    let mut migration = Migration::begin(&mut stage, &options)?;
    let mut told = Told::default();
    loop {
        let goes_on = migration.look()?;
        told.tell(screen, &migration, &options)?;
        if !goes_on {
            break;
        }
    }
    let (ended, timeline) = migration.end()?;
    settle(&mut stage, ended, &timeline)
}

/// What has been shown so far.
#[derive(Debug, Default)]
struct Told {
    source: Follower,
    events: usize,
    converged: bool,
}

impl Told {
    fn tell(
        &mut self,
        screen: &Screen,
        migration: &Migration<'_>,
        options: &MigrationOptions,
    ) -> Result<()> {
        let mut news: Vec<(u64, &str, String)> = Vec::new();
        if options.source_stderr == Stderr::Kept {
            let log = self.source.news(&migration.source.stderr());
            news.extend(log.into_iter().map(|(at_us, line)| (at_us, "source", line)));
        }
        let events = migration.timeline.events.get(self.events..);
        for (node, event) in events.unwrap_or_default() {
            self.events += 1;
            let what = match (node, event.name.as_str()) {
                (Node::A, "STOP") => "stopped on A",
                (Node::B, "RESUME") => "runs on B",
                _ => continue,
            };
            news.push((event.at_ns / 1000 % DAY_US, "VM", what.to_owned()));
        }
        news.sort_by_key(|(at_us, ..)| *at_us);
        for (_, who, what) in news {
            screen.step(who, &what)?;
        }
        if !self.converged && migration.timeline.converged_ns.is_some() {
            self.converged = true;
            screen.step(
                "network",
                "the router sends the VM's packets to B by itself",
            )?;
        }
        Ok(())
    }
}

/// What the client saw, and what was left behind.
fn account(run: &MigrationRun, gaps: Option<Gaps>) -> String {
    let mut lines = vec!["  what the client saw".to_owned()];
    if let Some(udp) = udp(run) {
        lines.push(format!(
            "    UDP   {} packets sent: {} lost, {} duplicated, {} reordered",
            thousands(udp.sent),
            udp.lost,
            udp.duplicated,
            udp.reordered
        ));
        lines.push(format!(
            "          answered in {:.1} ms (median), {:.1} (99 of 100), {:.1} (all)",
            udp.latency_p50_ms, udp.latency_p99_ms, udp.latency_max_ms
        ));
    }
    if let Some(gaps) = gaps {
        lines.push(format!(
            "          longest wait for an answer: {:.1} ms at the cutover, {} before",
            gaps.cutover.ms(),
            ms(gaps.calm_ms)
        ));
    }
    for tcp in run.client.tcp() {
        let state = match &tcp.broken {
            None if tcp.intact => "all right".to_owned(),
            None => format!("{} bytes WRONG", tcp.wrong_bytes),
            Some(reason) => format!("BROKEN: {reason}"),
        };
        lines.push(format!(
            "    TCP   {} bytes there and back, {state}; longest stall {:.1} ms",
            thousands(tcp.echoed_bytes),
            tcp.longest_stall_ms
        ));
    }
    match run.leaks.as_slice() {
        [] => lines.push("\n  left behind on the nodes: nothing".to_owned()),
        leaks => {
            lines.push("\n  left behind on the nodes:".to_owned());
            lines.extend(leaks.iter().map(|leak| format!("    {leak}")));
        }
    }
    lines.join("\n")
}
