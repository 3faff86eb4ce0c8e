//! Every fault at every moment, on a line each.

use anyhow::Result;

use super::figures::ms;
use super::screen::Screen;
use crate::lab::QemuVersion;
use crate::run::{Fault, FaultCase, Moment, run_with_fault};

/// Plays all cases whose name contains `only`. Returns whether each ended as it has to.
///
/// # Errors
///
/// When nobody reads what is printed.
pub fn fault_matrix(
    screen: &Screen,
    qemus: &[QemuVersion],
    only: &str,
    verbose: bool,
) -> Result<bool> {
    let (mut good, mut all) = (0, 0);
    for qemu in qemus {
        for fault in Fault::ALL {
            for moment in Moment::ALL {
                let case = FaultCase {
                    qemu: *qemu,
                    fault,
                    moment,
                };
                let name = format!("{qemu} {fault:?} {moment:?}");
                if !name.contains(only) {
                    continue;
                }
                all += 1;
                good += u32::from(play(screen, &name, case, verbose)?);
            }
        }
    }
    screen.print(&format!("\n  {good} of {all} ended as they have to"))?;
    Ok(good == all)
}

fn play(screen: &Screen, name: &str, case: FaultCase, verbose: bool) -> Result<bool> {
    let run = match run_with_fault(case) {
        Ok(run) => run,
        Err(error) => {
            screen.print(&format!("BAD   {name}: {error:#}"))?;
            return Ok(false);
        }
    };
    let good = run.problems.is_empty();
    let judgement = if good { "ok " } else { "BAD" };
    let message = match run.message.as_str() {
        "" => "moved: the fault met nobody",
        message => message,
    };
    screen.print(&format!(
        "{judgement}   {name}: over in {:.1} s, V's writes stalled {} ms\n      {message}",
        run.ended_after.as_secs_f64(),
        ms(run.longest_stall_ms)
    ))?;
    for problem in &run.problems {
        screen.print(&format!("      ! {problem}"))?;
    }
    if verbose && !good {
        for (side, ended) in [("source", &run.ended.source), ("dest", &run.ended.dest)] {
            screen.print(&format!("--- {side}\n{}{}", ended.stdout, ended.stderr))?;
        }
    }
    Ok(good)
}
