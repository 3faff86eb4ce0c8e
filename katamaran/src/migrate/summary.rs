//! The report as a person reads it.

use std::fmt::Write as _;

use super::ledger::{Count, Verdict};
use super::message::{Buffer, Tunnel};
use super::progress::mib;
use super::report::{Outcome, Report};
use crate::role::Role;

/// Renders the summary that a migration prints on standard output.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    write_summary(&mut out, report).expect("writing to a String can't fail");
    out
}

fn write_summary(out: &mut String, r: &Report) -> std::fmt::Result {
    let outcome = match r.outcome {
        Outcome::Migrated => "migrated: the VM runs on the destination",
        Outcome::Failed => "failed: the VM is the source's",
        Outcome::TimedOut => "timed out: the VM is the source's",
        Outcome::Refused => "refused: nothing was touched",
        Outcome::Cancelled => "cancelled: the VM is the source's",
        Outcome::Undecided => "UNDECIDED: see below before anything is started",
    };
    writeln!(out, "session {} ({})  {outcome}", r.session, r.role)?;
    if let Some(error) = &r.error {
        writeln!(out, "\n  error: {error}")?;
    }
    if !r.phases.is_empty() {
        writeln!(out, "\n  phases")?;
        for phase in &r.phases {
            writeln!(out, "    {:<12} {:>10.1} ms", phase.name, phase.duration_ms)?;
        }
    }
    write_disks(out, r)?;
    write_cutover(out, r)?;
    write_shared_volumes(out, r)?;
    write_connections(out, r)?;
    write_returned(out, r)?;
    if r.ledger.is_some() {
        write_ledger(out, r)?;
    }
    for warning in &r.warnings {
        writeln!(out, "\n  warning: {warning}")?;
    }
    let left: Vec<_> = r.left_behind().collect();
    if !left.is_empty() {
        writeln!(out, "\n  left behind")?;
        for step in left {
            writeln!(
                out,
                "    {}: {}",
                step.what,
                step.error.as_deref().unwrap_or_default()
            )?;
        }
    }
    if r.outcome == Outcome::Migrated && (r.role == Role::Source || r.verdict != Verdict::Unproven)
    {
        write_verdict(out, r)?;
    }
    Ok(())
}

fn write_returned(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(returned) = &r.returned else {
        return Ok(());
    };
    let arrived = returned
        .arrived
        .map_or("unknown".to_owned(), |packets| packets.to_string());
    writeln!(
        out,
        "\n  abort     {} packets had been redirected, {arrived} arrived on the destination,\n            \
         {} are back with the VM{}",
        returned.redirected,
        returned.returned,
        match returned.from_copies {
            0 => String::new(),
            copies => format!(", {copies} of them as copies that the source had kept"),
        }
    )
}

fn write_disks(out: &mut String, r: &Report) -> std::fmt::Result {
    const MIB: f64 = 1048576.0;
    if r.disks.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    for d in &r.disks {
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let (size, copied) = (d.size as f64 / MIB, d.copied as f64 / MIB);
        let rate = d
            .bandwidth
            .map_or(String::new(), |rate| format!(" at {:.0} MiB/s", rate / MIB));
        writeln!(
            out,
            "  disk      {}, {size:.1} MiB, {copied:.1} MiB copied in {:.1} s{rate}, {}",
            d.id, d.seconds, d.mode
        )?;
        let backlog = d
            .backlog_at_commit
            .map_or("its mirror was not brought to an end".to_owned(), |bytes| {
                format!("{bytes} bytes behind when its mirror ended")
            });
        let verified = match d.verified {
            Some(true) => ", compared with the destination's: equal",
            Some(false) => ", compared with the destination's: DIFFERENT",
            None => "",
        };
        writeln!(out, "            {backlog}{verified}")?;
    }
    Ok(())
}

fn write_cutover(out: &mut String, r: &Report) -> std::fmt::Result {
    if r.downtime_ms.is_none() && r.ram.is_none() {
        return Ok(());
    }
    writeln!(out)?;
    if let Some(ram) = &r.ram {
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let (total, sent) = (
            ram.total as f64 / 1048576.0,
            ram.transferred as f64 / 1048576.0,
        );
        writeln!(
            out,
            "  RAM       {total:.1} MiB, {sent:.1} MiB sent in {} passes at {} MiB/s\n            \
             guest dirties {} MiB/s",
            ram.passes,
            mib(ram.bandwidth, 0),
            mib(ram.dirty_rate, 1),
        )?;
    }
    if let Some(ms) = r.downtime_ms {
        let qemu = r
            .qemu_downtime_ms
            .map_or("not told".into(), |q| format!("{q} ms"));
        let clock = match (r.clock_offset_us, r.clock_rtt_us) {
            (Some(offset), Some(rtt)) => {
                format!(
                    "\n            clocks {offset:+.0} us apart, +-{:.0} us",
                    rtt / 2.0
                )
            }
            _ => String::new(),
        };
        writeln!(
            out,
            "  downtime  {ms:.1} ms, STOP to RESUME (QEMU's own figure: {qemu}){clock}"
        )?;
    }
    if let Some(ms) = r.blackout_ms {
        writeln!(out, "  blackout  {ms:.1} ms, flip to release")?;
    }
    let c = &r.cutover;
    if let Some(write) = c.flip_write_us {
        let redirected = r.ledger.as_ref().and_then(|l| l.s3).map(|s3| s3.packets);
        let first = match (c.first_redirect_us, redirected) {
            (Some(us), _) => format!(", first packet redirected {us:.1} us after it"),
            (None, Some(0)) => ", no packet was redirected".to_owned(),
            // After an abort nobody has looked.
            (None, _) => String::new(),
        };
        writeln!(out, "  flip      {write:.1} us map write{first}")?;
    }
    if let (Some(drained), Some(stopped)) = (c.drained_ms, c.stopped_ms) {
        // In the order in which they happen.
        let more = [
            ("disks ended", c.disks_ended_ms),
            ("handed over", c.handed_over_ms),
            ("loaded", c.loaded_ms),
            ("released", c.released_ms),
            ("committed", c.committed_ms),
        ]
        .iter()
        .filter_map(|(name, at)| at.map(|at| format!("{name} {at:.1}")))
        .collect::<Vec<_>>()
        .join(", ");
        writeln!(
            out,
            "            then drained {drained:.1} ms, stopped {stopped:.1}"
        )?;
        if !more.is_empty() {
            writeln!(out, "            {more}")?;
        }
    }
    if c.qemu_stopped_first {
        writeln!(
            out,
            "  QEMU stopped the VM by itself, before the redirect was in place"
        )?;
    }
    match (r.tunnel, r.buffer) {
        (Some(tunnel), Some(buffer)) => {
            let tunnel = match tunnel {
                Tunnel::Ip => "IPIP/IP6IP6, encapsulated by the eBPF program".to_owned(),
                Tunnel::Gre => "GRE over IPv4/IPv6, encapsulated by the eBPF program".to_owned(),
                Tunnel::Vxlan { port } => format!("vxlan device, UDP port {port}"),
                Tunnel::None => "no tunnel".to_owned(),
            };
            let place = match buffer {
                Buffer::Plug { limit_bytes } => format!("sch_plug, up to {limit_bytes} bytes"),
                Buffer::TapRing { slots } => {
                    format!("the tap's ring, {slots} packets (this kernel: no sch_plug)")
                }
            };
            writeln!(out, "  path      {tunnel}\n            held in {place}")?;
            let Some(held) = r.held else { return Ok(()) };
            let bytes = held.bytes.map(|bytes| format!(", {bytes} bytes"));
            writeln!(
                out,
                "            {} packets{} when the VM ran on: {} % of that",
                held.packets,
                bytes.unwrap_or_default(),
                held.percent_of(buffer)
            )
        }
        _ => Ok(()),
    }
}

fn write_shared_volumes(out: &mut String, r: &Report) -> std::fmt::Result {
    if !r.shared_volumes.is_empty() {
        writeln!(out, "\n  shared volumes")?;
    }
    for volume in &r.shared_volumes {
        let attached = volume
            .attached_ms
            .map_or("not measured to its end".to_owned(), |ms| {
                format!("{:.1} s", ms / 1000.0)
            });
        let identity = volume.identity.as_ref().map(|id| format!(" ({id})"));
        writeln!(
            out,
            "    {}  {}\n      same on both nodes: {}{}\n      kept from others by: {}; both nodes had it open: {attached}",
            volume.drive,
            volume.path,
            volume.proof.as_str(),
            identity.unwrap_or_default(),
            volume.fence.as_str(),
        )?;
    }
    Ok(())
}

fn write_connections(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(c) = &r.conntrack else { return Ok(()) };
    if c.read == 0 && c.unavailable.is_none() {
        return writeln!(out, "\n  connections  the source tracked none of the VM's");
    }
    let mut parts = vec![format!("{} tracked by the source", c.read)];
    for (count, what) in [
        (c.carried, "carried"),
        (c.ended, "ended meanwhile"),
        (
            c.source_translates,
            "of the carried translated by the source as before",
        ),
        (
            c.bound_to_source,
            "of the carried bound to an address of the source",
        ),
        (c.without_helper, "of the carried without their helper"),
        (c.relaxed, "whose windows the source no longer checks"),
        (c.late, "of the carried later than COMMIT"),
        (
            c.needless,
            "not needed on the destination, which tracks none",
        ),
        (c.unanswered, "not answered for"),
        (c.beyond, "too many to be carried"),
    ] {
        if count > 0 || what == "carried" {
            parts.push(format!("{count} {what}"));
        }
    }
    writeln!(out, "\n  connections  {}", parts.join(", "))?;
    for refused in &c.refused {
        writeln!(out, "    {} refused: {}", refused.count, refused.reason)?;
    }
    match c.settled_ms {
        Some(ms) if c.settled_late => {
            writeln!(
                out,
                "    complete {ms:.1} ms after the stop, later than COMMIT"
            )
        }
        Some(ms) => writeln!(out, "    complete {ms:.1} ms after the stop"),
        None => Ok(()),
    }
}

fn write_ledger(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(l) = &r.ledger else { return Ok(()) };
    let count = |c: Option<Count>| {
        c.map_or("not read".to_owned(), |c| {
            format!("{} packets, {} bytes", c.packets, c.bytes)
        })
    };
    let number = |n: Option<u64>| n.map_or("not read".to_owned(), |n| format!("{n} packets"));
    writeln!(out, "\n  packet ledger")?;
    for (hop, what, value) in [
        ("S1", "arrived at the source", count(l.s1)),
        ("S2", "passed to the VM there", count(l.s2)),
        ("S2'", "read by its QEMU", number(l.s2_read)),
        ("S3", "redirected", count(l.s3)),
        ("D1", "arrived through the tunnel", count(l.d1)),
        ("D2", "arrived directly", count(l.d2)),
        ("D3", "passed to the VM here", count(l.d3)),
        ("D3'", "read by its QEMU", number(l.d3_read)),
        ("X", "dropped by a kernel", number(l.x)),
    ] {
        writeln!(out, "    {hop:<4} {what:<27} {value}")?;
    }
    if let (Some(s), Some(d)) = (&l.digest_source, &l.digest_dest) {
        let equal = if s == d { "equal" } else { "DIFFERENT" };
        writeln!(out, "    digest of S3 {s}, of D1 {d}: {equal}")?;
    }
    if let Some(numbers) = l.destination.numbers {
        writeln!(
            out,
            "    numbers in the outer headers of D1: {} missing, {} out of order",
            numbers.missing, numbers.late
        )?;
    }
    if l.recovered.from_source_tap > 0 {
        writeln!(
            out,
            "    recovered from the source's tap: {}, delivered ahead of the others: {}",
            l.recovered.from_source_tap, l.recovered.into_destination_tap
        )?;
    }
    for nic in &r.nics {
        let (passed, redirected) = (count(nic.ledger.d3), count(nic.ledger.s3));
        writeln!(
            out,
            "    of {}: S3 {redirected}; D3 {passed}: {}",
            nic.tap, nic.verdict
        )?;
    }
    Ok(())
}

fn write_verdict(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out)?;
    match r.verdict {
        Verdict::Proven => writeln!(out, "  zero-drop: proven"),
        Verdict::Unproven => {
            writeln!(
                out,
                "  zero-drop: unproven, no loss is known, but not everything could be counted:"
            )?;
            for what in &r.unproven {
                writeln!(out, "    {what}")?;
            }
            Ok(())
        }
        Verdict::Violated => {
            let (lost, duplicated) = r.ledger.as_ref().map_or((0, 0), |l| (l.lost, l.duplicated));
            writeln!(
                out,
                "  zero-drop: VIOLATED, {lost} lost, {duplicated} duplicated"
            )?;
            for imbalance in r.ledger.iter().flat_map(|l| &l.imbalances) {
                let reasons = if imbalance.reasons.is_empty() {
                    "the kernels of both nodes report no drop".to_owned()
                } else {
                    imbalance.reasons.join(", ")
                };
                let altered = if imbalance.altered {
                    ", contents differ"
                } else {
                    ""
                };
                writeln!(
                    out,
                    "    at {}: {} lost, {} duplicated{altered}: {reasons}",
                    imbalance.hop, imbalance.lost, imbalance.duplicated
                )?;
            }
            Ok(())
        }
    }
}
