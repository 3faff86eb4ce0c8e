//! A trace for people.

use std::fmt::{self, Write as _};

use super::reasons;
use super::record::{
    Direction, Dropped, Hooks, Lost, LostCounts, Packet, Place, PlaceTotal, Record, Start, Summary,
};

/// One record as one or several lines.
pub(super) fn render(record: &Record) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let written = match record {
        Record::Start(start) => start_line(&mut out, start),
        Record::Drop(dropped) => drop_line(&mut out, dropped),
        Record::Hooks(hooks) => hooks_line(&mut out, hooks),
        Record::Lost(lost) => lost_line(&mut out, lost),
        Record::Summary(summary) => summary_lines(&mut out, summary),
    };
    debug_assert!(written.is_ok(), "a string takes everything");
    out
}

fn start_line(out: &mut String, start: &Start) -> fmt::Result {
    let ips: Vec<String> = start.vm_ips.iter().map(ToString::to_string).collect();
    writeln!(
        out,
        "watching for drops of packets to and from {}; Ctrl-C ends (times are UTC)",
        ips.join(", ")
    )?;
    if !start.symbols {
        writeln!(
            out,
            "note: the kernel hides where its functions are (kernel.kptr_restrict): places are addresses"
        )?;
    }
    Ok(())
}

/// The time of day, of `2026-11-22T09:12:33.123456Z`.
fn clock(time: &str) -> &str {
    time.get(11..26).unwrap_or(time)
}

fn drop_line(out: &mut String, dropped: &Dropped) -> fmt::Result {
    let place = &dropped.place;
    writeln!(
        out,
        "{}  {:<18} {:<10} {:<24} {}  {}",
        clock(&dropped.time),
        place.reason,
        hop(place),
        device(place),
        packet(&dropped.packet, place.tunnel),
        function(place),
    )
}

fn hop(place: &Place) -> String {
    match &place.qdisc {
        Some(qdisc) => {
            let kind = qdisc.split(' ').next().unwrap_or_default();
            format!("{} {kind}", place.hop)
        }
        None => place.hop.to_string(),
    }
}

/// `vtap@node-a`; without a namespace's name its inode number, as the kernel's own tools show it.
fn device(place: &Place) -> String {
    let device = match (&place.device, place.ifindex) {
        (Some(name), _) => name.clone(),
        (None, Some(ifindex)) => format!("device {ifindex}"),
        (None, None) => return "-".to_owned(),
    };
    match (&place.netns, place.netns_inode) {
        (Some(name), _) => format!("{device}@{name}"),
        (None, Some(inode)) => format!("{device}@net:[{inode}]"),
        (None, None) => device,
    }
}

fn function(place: &Place) -> &str {
    place.symbol.as_deref().unwrap_or(&place.location)
}

fn packet(packet: &Packet, tunnel: Option<&str>) -> String {
    let Packet {
        source,
        destination,
        protocol,
        length,
        ..
    } = packet;
    let end = |ip: &std::net::IpAddr, port: Option<u16>| match (ip.is_ipv6(), port) {
        (true, Some(port)) => format!("[{ip}]:{port}"),
        (false, Some(port)) => format!("{ip}:{port}"),
        (_, None) => ip.to_string(),
    };
    let mut text = format!(
        "{protocol} {} > {}",
        end(source, packet.source_port),
        end(destination, packet.destination_port)
    );
    if let Some(flags) = &packet.tcp_flags {
        text.push_str(&format!(" {flags}"));
    }
    text.push_str(&format!(", {length} bytes"));
    if packet.packets > 1 {
        text.push_str(&format!(" in {} packets", packet.packets));
    }
    if packet.fragment {
        text.push_str(", a fragment");
    }
    if let Some(tunnel) = tunnel {
        text.push_str(&format!(", in {tunnel}"));
    }
    text
}

fn hooks_line(out: &mut String, hooks: &Hooks) -> fmt::Result {
    let mode = hooks.mode.map(|mode| format!(", {mode}"));
    let counters: Vec<String> = hooks
        .counters
        .iter()
        .map(|(name, change)| format!("{name} +{} ({})", change.more, change.total))
        .collect();
    writeln!(
        out,
        "{}  hooks of session {} ({}{}): {}",
        clock(&hooks.time),
        hooks.session,
        hooks.role,
        mode.unwrap_or_default(),
        counters.join(", ")
    )
}

fn lost_line(out: &mut String, lost: &Lost) -> fmt::Result {
    write!(out, "{}  not told: ", clock(&lost.time))?;
    lost_counts(out, &lost.counts)?;
    writeln!(out)
}

fn lost_counts(out: &mut String, lost: &LostCounts) -> fmt::Result {
    write!(
        out,
        "{} drops came faster than they could be read (they are in the totals), {} were in too many places to \
         be counted",
        lost.untold, lost.uncounted
    )?;
    match lost.missed {
        Some(missed) => write!(out, ", {missed} of whomever were missed"),
        None => write!(out, ", this kernel does not say how many were missed"),
    }
}

fn summary_lines(out: &mut String, summary: &Summary) -> fmt::Result {
    writeln!(
        out,
        "\n{} packets of the VM dropped in {:.1} s",
        summary.packets, summary.duration_s
    )?;
    for (reason, packets) in by_frequency(summary) {
        let meaning = reasons::known(reason).map_or("", |known| known.meaning);
        writeln!(out, "{packets:>8}  {reason:<18} {meaning}")?;
        for row in rows(summary, reason) {
            let place = &row.place;
            write!(
                out,
                "{:>10}  {:<10} {:<24} {}",
                row.packets,
                hop(place),
                device(place),
                function(place)
            )?;
            if place.direction == Direction::FromVm {
                write!(out, ", from the VM")?;
            }
            if let Some(tunnel) = place.tunnel {
                write!(out, ", in {tunnel}")?;
            }
            writeln!(out)?;
        }
    }
    if summary.no_loss != 0 {
        writeln!(
            out,
            "{} copies or pieces of packets were dropped as well: no loss",
            summary.no_loss
        )?;
    }
    if summary.lost != LostCounts::default() && summary.lost != NOTHING_LOST {
        write!(out, "incomplete: ")?;
        lost_counts(out, &summary.lost)?;
        writeln!(out)?;
    }
    Ok(())
}

const NOTHING_LOST: LostCounts = LostCounts {
    untold: 0,
    uncounted: 0,
    missed: Some(0),
};

fn by_frequency(summary: &Summary) -> Vec<(&str, u64)> {
    let mut reasons: Vec<_> = summary
        .reasons
        .iter()
        .map(|(reason, packets)| (reason.as_str(), *packets))
        .collect();
    reasons.sort_by_key(|(_, packets)| u64::MAX - packets);
    reasons
}

fn rows<'a>(summary: &'a Summary, reason: &'a str) -> impl Iterator<Item = &'a PlaceTotal> {
    summary
        .places
        .iter()
        .filter(move |row| row.place.reason == reason)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::hop::Hop;
    use super::*;

    pub(in super::super) fn dropped() -> Dropped {
        Dropped {
            time: "2026-11-22T09:12:33.123456Z".to_owned(),
            place: Place {
                reason: "QDISC_DROP".to_owned(),
                hop: Hop::Qdisc,
                symbol: Some("__dev_queue_xmit+0x9f".to_owned()),
                location: "0xffffffff81234567".to_owned(),
                device: Some("vtap".to_owned()),
                ifindex: Some(4),
                netns: Some("node-a".to_owned()),
                netns_inode: Some(4_026_532_001),
                qdisc: Some("tbf 8001:".to_owned()),
                direction: Direction::ToVm,
                tunnel: None,
            },
            packet: Packet {
                source: [10, 80, 0, 2].into(),
                source_port: Some(40000),
                destination: [10, 90, 0, 5].into(),
                destination_port: Some(7777),
                protocol: "UDP".to_owned(),
                tcp_flags: None,
                fragment: false,
                length: 128,
                packets: 1,
            },
        }
    }

    #[test]
    fn a_drop_is_one_line_with_when_why_where_and_what() {
        let line = render(&Record::Drop(Box::new(dropped())));
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "09:12:33.123456 QDISC_DROP qdisc tbf vtap@node-a \
             UDP 10.80.0.2:40000 > 10.90.0.5:7777, 128 bytes __dev_queue_xmit+0x9f"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let mut dropped = dropped();
        dropped.place = Place {
            symbol: None,
            device: None,
            netns: None,
            ..dropped.place
        };
        let line = render(&Record::Drop(Box::new(dropped)));
        assert!(line.contains("device 4@net:[4026532001]"), "{line}");
        assert!(line.contains("0xffffffff81234567"), "{line}");
    }

    #[test]
    fn lost_events_are_told_at_the_end() {
        let summary = |lost| {
            render(&Record::Summary(Summary {
                time: String::new(),
                duration_s: 1.0,
                packets: 3,
                reasons: [("QDISC_DROP".to_owned(), 3)].into(),
                places: vec![PlaceTotal {
                    place: dropped().place,
                    meaning: None,
                    packets: 3,
                }],
                no_loss: 0,
                told: 1,
                lost,
            }))
        };
        let complete = summary(NOTHING_LOST);
        assert!(complete.contains("3 packets of the VM"), "{complete}");
        assert!(complete.contains("vtap@node-a"), "{complete}");
        assert!(!complete.contains("incomplete"), "{complete}");
        let lost = LostCounts {
            untold: 2,
            ..NOTHING_LOST
        };
        assert!(summary(lost).contains("incomplete: 2 drops came faster"));
    }
}
