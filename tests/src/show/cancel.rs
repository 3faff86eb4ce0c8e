//! The same VM, whose migration is cancelled again and again at random moments, under load.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::screen::Screen;
use crate::lab::{LabConfig, QemuVersion, Wiring};
use crate::run::{
    ClientResult, Ended, Migration, MigrationOptions, Role, SideResult, Stage, StageOptions,
    TrafficSpec,
};

/// A side that is told to end has ended by then (US-6).
const WITHIN: Duration = Duration::from_secs(10);
/// The path between the nodes, so that copy and pause last. V writes memory faster than that.
const PATH_BYTES_PER_SECOND: u64 = 20_000_000;
const DIRTY: (u64, u64) = (30, 16);
/// The exit status of whoever was told to end.
const INTERRUPTED: Option<i32> = Some(130);

/// What to run.
#[derive(Debug, Clone, Copy, Args)]
pub struct CancelOptions {
    /// How many times
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// QEMU version: 7.2, 10.0 or stand-in, which needs no guest
    #[arg(long, default_value = "10.0")]
    qemu: QemuVersion,
    /// How V hangs on its nodes: tap, bridge, pod, pod-bridge or pod-peer
    #[arg(long, default_value = "tap")]
    wiring: Wiring,
    /// UDP packets per second, over each of IPv4 and IPv6
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pps: u32,
    /// Draws the same moments again
    #[arg(long)]
    seed: Option<u64>,
}

/// When a signal is sent.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after a side has logged this.
    Logged(Role, &'static str, Duration),
    /// So long after V's STOP: its packets are being redirected and held.
    Pause(Duration),
}

/// One cancellation, as it was drawn.
#[derive(Debug, Clone, Copy)]
struct Draw {
    moment: Moment,
    role: Role,
    signal: Signal,
}

impl Draw {
    /// Every other one comes in the pause. A guest that dirties little is copied before that can be told.
    fn random(random: &mut fastrand::Rng, has_guest: bool) -> Self {
        let after = |random: &mut fastrand::Rng, longest_ms: u64| {
            Duration::from_micros(random.u64(0..longest_ms * 1000))
        };
        let moment = match random.u32(0..8) {
            0 => Moment::Logged(Role::Dest, "a source has come", after(random, 20)),
            1 => Moment::Logged(Role::Source, "phase=\"arm\"", after(random, 300)),
            2 | 3 if has_guest => Moment::Logged(Role::Source, "RAM:", after(random, 2000)),
            2 | 3 => Moment::Logged(Role::Source, "phase=\"arm\"", after(random, 600)),
            _ => Moment::Pause(after(random, 100)),
        };
        Self {
            moment,
            role: *random
                .choice(&[Role::Source, Role::Dest])
                .unwrap_or(&Role::Source),
            signal: *random
                .choice(&[Signal::SIGINT, Signal::SIGTERM])
                .unwrap_or(&Signal::SIGINT),
        }
    }

    fn describe(&self) -> String {
        let (what, after) = match self.moment {
            Moment::Logged(_, "RAM:", after) => ("copy", after),
            Moment::Logged(_, "phase=\"arm\"", after) => ("arm", after),
            Moment::Logged(_, _, after) => ("prepare", after),
            Moment::Pause(after) => ("pause", after),
        };
        let role = match self.role {
            Role::Source => "source",
            Role::Dest => "destination",
        };
        let ms = after.as_secs_f64() * 1000.0;
        format!("{what:<8}+{ms:>7.1} ms  {} to the {role:<11}", self.signal)
    }
}

/// What became of one.
struct Cancelled {
    ended: Ended,
    /// From the signal until that side had ended.
    took: Duration,
}

/// What all of them amount to.
#[derive(Debug, Default)]
struct Sum {
    cancelled: u32,
    in_pause: u32,
    too_late: u32,
    redirected: u64,
    returned: u64,
    problems: u32,
    slowest: Duration,
    client: Vec<ClientResult>,
}

/// Cancels all of them, one line each, and prints what they amount to. Returns whether V and its traffic never noticed.
///
/// # Errors
///
/// When the lab fails, or nobody reads what is printed.
pub fn cancel_soak(screen: &Screen, options: CancelOptions) -> Result<bool> {
    let seed = options
        .seed
        .unwrap_or_else(|| RandomState::new().hash_one(0));
    let mut random = fastrand::Rng::with_seed(seed);
    screen.print(&format!(
        "{} migrations of one VM, cancelled at random moments (--seed {seed}), {} UDP packets/s over IPv4, as many over IPv6, and TCP\n",
        options.runs, options.pps
    ))?;
    let mut sum = Sum::default();
    let mut stage = None;
    for number in 1..=options.runs {
        let draw = Draw::random(&mut random, options.qemu != QemuVersion::StandIn);
        let mut set = match stage.take() {
            Some(stage) => stage,
            None => set(options)?,
        };
        set.renew_guest_b()?;
        let cancelled = play(&mut set, draw)?;
        let migrated = cancelled.ended.source.status == Some(0);
        tell(screen, number, draw, &cancelled, &mut sum)?;
        if migrated {
            sum.client.push(set.finish_traffic()?.0);
        } else {
            check_vm(screen, &mut set, &mut sum)?;
            stage = Some(set);
        }
    }
    if let Some(mut stage) = stage {
        sum.client.push(stage.finish_traffic()?.0);
    }
    judge(screen, &sum)
}

fn set(options: CancelOptions) -> Result<Stage> {
    let real = options.qemu != QemuVersion::StandIn;
    let stage = Stage::set(StageOptions {
        lab: LabConfig {
            qemu: options.qemu,
            wiring: options.wiring,
            dirty: real.then_some(DIRTY),
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: options.pps,
            pps_v6: options.pps,
            tcp_v4: Some(100_000),
            ..TrafficSpec::default()
        },
        ..StageOptions::default()
    })?;
    stage.lab.slow_path_to_b(7482, PATH_BYTES_PER_SECOND)?;
    Ok(stage)
}

fn play(stage: &mut Stage, draw: Draw) -> Result<Cancelled> {
    let options = MigrationOptions {
        source_args: vec!["--downtime=3000".to_owned()],
        ..MigrationOptions::default()
    };
    let mut migration = Migration::begin(stage, &options)?;
    let after = match draw.moment {
        Moment::Logged(role, text, after) => {
            migration.look_until_logged(role, text)?;
            after
        }
        Moment::Pause(after) => {
            migration.look_until("V's stop", |migration| {
                Ok(migration.timeline.stop_ns.is_some())
            })?;
            after
        }
    };
    let due = Instant::now() + after;
    migration.look_until("the moment", |_| Ok(Instant::now() >= due))?;
    let took = migration.signal(draw.role, draw.signal, WITHIN * 6)?;
    let (ended, _) = migration.end()?;
    Ok(Cancelled { ended, took })
}

fn tell(
    screen: &Screen,
    number: u32,
    draw: Draw,
    cancelled: &Cancelled,
    sum: &mut Sum,
) -> Result<()> {
    let ended = &cancelled.ended;
    let (told, other) = match draw.role {
        Role::Source => (&ended.source, &ended.dest),
        Role::Dest => (&ended.dest, &ended.source),
    };
    let report = ended.source.report.clone().unwrap_or_default();
    let count = |name: &str| report["returned"][name].as_u64();
    let returned = match (count("redirected"), count("returned")) {
        (Some(redirected), Some(returned)) => {
            sum.redirected += redirected;
            sum.returned += returned;
            format!("{redirected} redirected, {returned} back")
        }
        _ => "nothing redirected".to_owned(),
    };
    let mut problems = Vec::new();
    if let (Some(redirected), Some(returned)) = (count("redirected"), count("returned"))
        && returned < redirected
    {
        problems.push(format!("{} did not come back", redirected - returned));
    }
    if ended.source.status == Some(0) && ended.dest.status == Some(0) {
        sum.too_late += 1;
    } else {
        sum.cancelled += 1;
        sum.in_pause += u32::from(matches!(draw.moment, Moment::Pause(_)));
        if told.status != INTERRUPTED || !matches!(other.status, Some(1 | 130)) {
            problems.push(format!("exit statuses {:?}", [told.status, other.status]));
        }
        if cancelled.took > WITHIN {
            problems.push(format!("took {:.1} s", cancelled.took.as_secs_f64()));
        }
        sum.slowest = sum.slowest.max(cancelled.took);
    }
    problems.extend(
        ended
            .leaks
            .iter()
            .map(|leak| format!("left behind: {leak}")),
    );
    let fate = match ended.source.status {
        Some(0) => "too late: it has moved",
        _ => returned.as_str(),
    };
    screen.print(&format!(
        "{number:>4}  {}  {:>5.2} s  {fate}",
        draw.describe(),
        cancelled.took.as_secs_f64()
    ))?;
    if !problems.is_empty() {
        sum.problems += 1;
        let said = |side: &SideResult| format!("{}{}", side.stdout, side.stderr);
        screen.print(&format!(
            "      BAD: {}\n--- source\n{}--- destination\n{}",
            problems.join(", "),
            said(&ended.source),
            said(&ended.dest)
        ))?;
    }
    Ok(())
}

/// V runs on A and answers.
fn check_vm(screen: &Screen, stage: &mut Stage, sum: &mut Sum) -> Result<()> {
    let status = stage.qmp_a.command("query-status", Value::Null)?;
    let client = stage.client.as_ref().context("the traffic is on")?;
    let answers = client.wait_for_more(50);
    if status["running"] != true || answers.is_err() {
        sum.problems += 1;
        screen.print(&format!("      BAD: V is {status}, {answers:?}"))?;
    }
    Ok(())
}

fn judge(screen: &Screen, sum: &Sum) -> Result<bool> {
    let all = |count: fn(&crate::traffic::UdpResult) -> u64| -> u64 {
        let udp = sum.client.iter().flat_map(ClientResult::udp);
        udp.map(count).sum()
    };
    let (sent, lost) = (all(|udp| udp.sent), all(|udp| udp.lost));
    let (copies, reordered) = (all(|udp| udp.duplicated), all(|udp| udp.reordered));
    let mut tcp = sum.client.iter().flat_map(ClientResult::tcp);
    let intact = tcp.all(|tcp| tcp.intact);
    screen.print(&format!(
        "\n  {} cancelled, {} of them in the pause; {} came too late; the slowest took {:.2} s\n  \
         {} packets were redirected, {} given back\n  \
         the client: {sent} packets sent, {lost} lost, {copies} duplicated, {reordered} reordered; TCP {}\n  \
         {} with problems",
        sum.cancelled,
        sum.in_pause,
        sum.too_late,
        sum.slowest.as_secs_f64(),
        sum.redirected,
        sum.returned,
        if intact { "intact" } else { "BROKEN" },
        sum.problems,
    ))?;
    let answered = !sum.client.is_empty() && sent > 0;
    Ok(answered && (sum.problems, lost, copies) == (0, 0, 0) && intact && sum.cancelled > 0)
}
