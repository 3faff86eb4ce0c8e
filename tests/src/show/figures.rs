//! The figures of one run, whatever means it was done by.

use katamaran::migrate::ledger::Verdict;
use katamaran::migrate::report::Report;

use crate::run::MigrationRun;
use crate::traffic::{Silence, UdpResult};

/// Before and after V's STOP, this much belongs to the cutover.
const AROUND_NS: u64 = 1_000_000_000;

/// The longest silences of one run, in ms; see [`super`] for what they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Gaps {
    pub(super) cutover: Silence,
    pub(super) calm_ms: Option<f64>,
    pub(super) whole_ms: f64,
}

/// What the client saw around the cutover, or `None` if V never stopped.
pub(super) fn gaps(run: &MigrationRun) -> Option<Gaps> {
    let record = &udp(run)?.record;
    let stop_ns = run.stop_ns?;
    let cutover = record.longest_silence(stop_ns - AROUND_NS, stop_ns + AROUND_NS)?;
    let calm = run
        .client
        .calm_ns
        .and_then(|(from, to)| record.longest_silence(from, to));
    Some(Gaps {
        cutover,
        calm_ms: calm.map(|silence| silence.ms()),
        whole_ms: record.longest_silence(0, u64::MAX)?.ms(),
    })
}

/// How long the traffic is to stay calm, for [`Gaps::calm_ms`] to cover as much time as the cutover.
pub(super) const CALM: std::time::Duration = std::time::Duration::from_nanos(2 * AROUND_NS);

/// The numbered UDP stream.
pub(super) fn udp(run: &MigrationRun) -> Option<&UdpResult> {
    run.client.udp_v4.as_ref()
}

/// The source's report, if katamaran did it.
pub(super) fn report(run: &MigrationRun) -> Option<Report> {
    serde_json::from_value(run.source.as_ref()?.report.clone()?).ok()
}

/// What the report says about packets, as a word.
pub(super) fn verdict(report: Option<&Report>) -> &'static str {
    match report.map(|report| report.verdict) {
        None => "-",
        Some(Verdict::Proven) => "proven",
        Some(Verdict::Unproven) => "unproven",
        Some(Verdict::Violated) => "VIOLATED",
    }
}

/// Everything that keeps a migration by katamaran from being perfect, for people.
pub(super) fn faults(run: &MigrationRun) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, side) in [("source", &run.source), ("dest", &run.dest)] {
        match side.as_ref().map(|side| side.status) {
            Some(Some(0)) => {}
            Some(Some(status)) => faults.push(format!("the {name} exited with status {status}")),
            _ => faults.push(format!("the {name} did not exit by itself")),
        }
    }
    let report = report(run);
    if verdict(report.as_ref()) != "proven" {
        faults.push(format!("the verdict is {}", verdict(report.as_ref())));
    }
    for udp in run.client.udp() {
        for (count, what) in [
            (udp.lost, "lost"),
            (udp.duplicated, "duplicated"),
            (udp.reordered, "reordered"),
            (udp.corrupted, "corrupted"),
        ] {
            if count > 0 {
                faults.push(format!("the client saw {count} packets {what}"));
            }
        }
    }
    if let Some(count @ 1..) = run.dropped_in_guest() {
        faults.push(format!(
            "the guest itself dropped {count} packets, its socket was full"
        ));
    }
    if run.client.udp().all(|udp| udp.sent == 0) {
        faults.push("no packet was sent".to_owned());
    }
    if !run.client.tcp().all(|tcp| tcp.intact) {
        faults.push("the TCP stream is not intact".to_owned());
    }
    if let Some(disk) = &run.client.disk {
        for (drive, of) in disk.drives.iter().enumerate() {
            if !of.is_intact() {
                let error = of.error.as_deref().unwrap_or("no error");
                faults.push(format!(
                    "drive {drive}: {} blocks lost, {} torn, {} misplaced, {} altered, {error}",
                    of.lost_blocks.len(),
                    of.torn_blocks.len(),
                    of.misplaced_blocks.len(),
                    of.altered_blocks.len()
                ));
            }
        }
        faults.extend(disk.unsettled.clone());
    }
    if let Some(silence) = &run.silence {
        let first = silence.lines().next().unwrap_or_default();
        faults.push(format!("the VM fell silent: {first}"));
    }
    faults.extend(run.leaks.iter().map(|leak| format!("left behind: {leak}")));
    faults
}

/// A figure in ms, or a dash.
pub(super) fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// A number with separators, for people.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::account::{Arrival, settle};

    fn run() -> MigrationRun {
        let second = 1_000_000_000;
        let sent: Vec<u64> = (0..100).map(|at| at * second / 10).collect();
        let late = |number: u64| if number == 80 { 50_000_000 } else { 1_000_000 };
        let arrivals: Vec<Arrival> = (0..100)
            .map(|number| Arrival {
                number,
                at_ns: number * second / 10 + late(number),
            })
            .collect();
        let mut run = MigrationRun {
            stop_ns: Some(8 * second),
            ..MigrationRun::default()
        };
        run.client.udp_v4 = Some(settle(&sent, &arrivals));
        run.client.calm_ns = Some((2 * second, 4 * second));
        run
    }

    #[test]
    fn the_gap_is_looked_for_around_the_stop_and_compared_with_calm_traffic() {
        let gaps = gaps(&run()).unwrap();
        assert_eq!((gaps.cutover.ms(), gaps.calm_ms), (50.0, Some(1.0)));
    }

    #[test]
    fn a_run_without_katamaran_is_not_a_perfect_migration() {
        assert!(faults(&run()).contains(&"the verdict is -".to_owned()));
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
