//! Every fault at every moment, on a line each.

use anyhow::Result;
use clap::Args;

use super::figures::ms;
use super::screen::Screen;
use crate::lab::{Node, QemuVersion};
use crate::run::{Fault, FaultCase, FaultRun, Moment, run_with_fault};

/// What is to be played.
#[derive(Debug, Clone, Args)]
pub struct FaultOptions {
    /// Only this one: stand-in (V has no disks), 7.2 or 10.0 (V writes to two) (may be repeated) [default: all]
    #[arg(long)]
    qemu: Vec<QemuVersion>,
    /// Only cases whose name contains this, such as LinkCut or "stand-in LinkCut Stopped"
    #[arg(long, default_value = "")]
    only: String,
    /// With a V that has two network cards (7.2 and 10.0)
    #[arg(long)]
    second_nic: bool,
    /// A cross-section: each moment and each fault, and whatever may happen around COMMIT
    #[arg(long)]
    quick: bool,
    /// Only say what would be played
    #[arg(long)]
    list: bool,
    /// Also print what both sides logged in a bad case
    #[arg(long)]
    logs: bool,
}

impl FaultOptions {
    fn cases(&self) -> impl Iterator<Item = FaultCase> {
        let all = [QemuVersion::StandIn, QemuVersion::V7_2, QemuVersion::V10_0];
        let cases = all
            .into_iter()
            .filter(|qemu| self.qemu.is_empty() || self.qemu.contains(qemu))
            .flat_map(|qemu| FaultCase::all(qemu, false).chain(FaultCase::all(qemu, true)));
        cases
            .filter(|case| match self.quick {
                true => is_in_cross_section(*case) && (case.second_nic || !self.second_nic),
                false => case.second_nic == self.second_nic,
            })
            .filter(|case| case.to_string().contains(&self.only))
    }
}

/// The steps of COMMIT with whatever is killed or cut, each with one of the signals; every other moment with another fault;
/// each of the disks' faults once; a real QEMU that waits for a last word of the other one's on a link that is cut; and around
/// the pause what goes wrong for a VM with two network cards.
fn is_in_cross_section(case: FaultCase) -> bool {
    let FaultCase {
        qemu,
        fault,
        moment,
        second_nic,
    } = case;
    if second_nic {
        return qemu == QemuVersion::V10_0
            && matches!(
                (fault, moment),
                (Fault::SourceInterrupted, Moment::Flip)
                    | (
                        Fault::SourceKilled | Fault::SourceQemuFrozen,
                        Moment::Stopped
                    )
                    | (Fault::DestinationKilled, Moment::Loaded)
                    | (Fault::LinkCut, Moment::CommitSent)
            );
    }
    let place = |fault| Fault::ALL.iter().position(|other| *other == fault);
    let moments = Moment::ALL.iter().position(|other| *other == moment);
    match qemu {
        QemuVersion::StandIn => match moment {
            Moment::CommitSent => !fault.is_gentle() || fault == Fault::SourceInterrupted,
            Moment::CommitReceived => !fault.is_gentle() || fault == Fault::DestinationTerminated,
            _ => fault == Fault::PathSilent || place(fault) == moments.map(|at| (at * 4) % 11),
        },
        QemuVersion::V7_2 | QemuVersion::V10_0 => {
            let odd = qemu == QemuVersion::V7_2;
            let of_disks = fault.is_of_disks()
                && moment == Moment::Ready
                && place(fault).is_some_and(|at| (at % 2 == 1) == odd);
            of_disks || (fault == Fault::LinkCut && moment == Moment::Loaded && !odd)
        }
    }
}

/// What all of them amount to.
#[derive(Debug, Default)]
struct Sum {
    good: usize,
    all: usize,
    on_a: usize,
    on_b: usize,
    nowhere: usize,
    settled: usize,
    lost_though_all_was_up: u64,
}

/// Plays all cases that are asked for. Returns whether each ended as it has to.
///
/// # Errors
///
/// When nobody reads what is printed.
pub fn fault_matrix(screen: &Screen, options: &FaultOptions) -> Result<bool> {
    let mut sum = Sum::default();
    for case in options.cases() {
        if options.list {
            screen.print(&case.to_string())?;
            continue;
        }
        sum.all += 1;
        match run_with_fault(case) {
            Ok(run) => {
                sum.add(case, &run);
                tell(screen, case, &run, options.logs)?;
            }
            Err(error) => screen.print(&format!("BAD  {case}: {error:#}"))?,
        }
    }
    if options.list {
        return Ok(true);
    }
    screen.print(&format!(
        "\n  {} of {} ended as they have to. V runs on A after {}, on B after {}, nowhere after {} (its QEMU was killed);\n  \
         {} needed an operator; where hosts, QEMUs and links stayed up {} packets were lost",
        sum.good, sum.all, sum.on_a, sum.on_b, sum.nowhere, sum.settled, sum.lost_though_all_was_up
    ))?;
    Ok(sum.good == sum.all && sum.all > 0)
}

impl Sum {
    fn add(&mut self, case: FaultCase, run: &FaultRun) {
        self.good += usize::from(run.problems.is_empty());
        match run.runs_on[..] {
            [] => self.nowhere += 1,
            [Node::A, ..] => self.on_a += 1,
            [Node::B, ..] => self.on_b += 1,
        }
        self.settled += usize::from(!run.operator.is_empty());
        if case.fault.costs_no_packet() {
            self.lost_though_all_was_up += run.lost;
        }
    }
}

fn tell(screen: &Screen, case: FaultCase, run: &FaultRun, logs: bool) -> Result<()> {
    let good = run.problems.is_empty();
    let judgement = if good { "ok " } else { "BAD" };
    let runs_on = match run.runs_on[..] {
        [] => "-",
        [Node::A] => "A",
        [Node::B] => "B",
        _ => "BOTH",
    };
    let exits = [&run.ended.source, &run.ended.dest].map(|side| match side.status {
        Some(status) => status.to_string(),
        None => "killed".to_owned(),
    });
    let report = run.ended.source.report.as_ref();
    let verdict = report
        .filter(|report| report["outcome"] == "migrated")
        .and_then(|report| Some(format!(" {}", report["verdict"].as_str()?)))
        .unwrap_or_default();
    let reached = match run.reached {
        Some(reached) if reached != case.moment && !case.moment.is_of_disks() => {
            format!(" ({reached:?})")
        }
        _ => String::new(),
    };
    let operator = match &run.operator[..] {
        [] => "nothing left".to_owned(),
        deeds => deeds.join(", "),
    };
    let stall = match run.longest_stall_ms {
        Some(stall) => format!(", writes stalled {} ms", ms(Some(stall))),
        None => String::new(),
    };
    let in_guest = match run.dropped_in_guest {
        Some(dropped) if run.lost > 0 => format!(" (dropped by V itself: {dropped})"),
        _ => String::new(),
    };
    screen.print(&format!(
        "{judgement}  {:<56} V on {runs_on}, lost {:>4}{in_guest}, exits {}/{}{verdict}, {:>5.1} s{stall}; {operator}\n       {}",
        format!("{case}{reached}"),
        run.lost,
        exits[0],
        exits[1],
        run.ended_after.as_secs_f64(),
        run.message
            .lines()
            .next()
            .unwrap_or("no message: it has moved"),
    ))?;
    for problem in &run.problems {
        screen.print(&format!("      ! {problem}"))?;
    }
    if logs && !good {
        for (side, ended) in [("source", &run.ended.source), ("dest", &run.ended.dest)] {
            screen.print(&format!("--- {side}\n{}{}", ended.stdout, ended.stderr))?;
        }
    }
    Ok(())
}
