//! What one migration came to.

use serde::Serialize;
use serde_json::Value;

use super::disk::DiskResult;
use crate::traffic::{TcpResult, UdpResult};

/// Overtaken packets that are told of one by one.
const OVERTAKEN_TOLD: usize = 10;

/// What the client saw, per stream that was on.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClientResult {
    /// Numbered UDP over IPv4.
    pub udp_v4: Option<UdpResult>,
    /// Numbered UDP over IPv6.
    pub udp_v6: Option<UdpResult>,
    /// The TCP connection over IPv4.
    pub tcp_v4: Option<TcpResult>,
    /// The TCP connection over IPv6.
    pub tcp_v6: Option<TcpResult>,
    /// Numbered UDP through the service's address.
    pub udp_service: Option<UdpResult>,
    /// Numbered UDP over IPv4 to V's second network card.
    pub udp_second_v4: Option<UdpResult>,
    /// Numbered UDP over IPv6 to it.
    pub udp_second_v6: Option<UdpResult>,
    /// The TCP connection through the service's IPv4 address.
    pub tcp_service: Option<TcpResult>,
    /// The TCP connection through the service's IPv6 address.
    pub tcp_service_v6: Option<TcpResult>,
    /// V's own writes to its disks.
    pub disk: Option<DiskResult>,
    /// When only the traffic was on, in ns since the epoch; none if that was not asked for.
    pub calm_ns: Option<(u64, u64)>,
}

impl ClientResult {
    /// The UDP streams that were on.
    pub fn udp(&self) -> impl Iterator<Item = &UdpResult> {
        self.udp_v4
            .iter()
            .chain(&self.udp_v6)
            .chain(&self.udp_service)
            .chain(&self.udp_second_v4)
            .chain(&self.udp_second_v6)
    }

    /// The TCP streams that were on.
    pub fn tcp(&self) -> impl Iterator<Item = &TcpResult> {
        self.tcp_v4
            .iter()
            .chain(&self.tcp_v6)
            .chain(&self.tcp_service)
            .chain(&self.tcp_service_v6)
    }

    /// UDP packets that never came back, over all streams.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.udp().map(|udp| udp.lost).sum()
    }

    /// Whether every packet came back once and in order, and every connection
    /// and the disk are intact.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        self.udp().all(UdpResult::is_perfect)
            && self.tcp().all(|tcp| tcp.intact)
            && self.disk.iter().all(DiskResult::is_intact)
    }
}

/// What one of the two katamaran processes left.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SideResult {
    /// Exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The JSON report, when one was written.
    pub report: Option<Value>,
}

/// What one migration came to, by whatever means.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MigrationRun {
    /// Which means: `katamaran` or a baseline's name.
    pub kind: String,
    /// What the client saw.
    pub client: ClientResult,
    /// V's STOP on A to RESUME on B, in ms, by the events' own times.
    pub downtime_ms: Option<f64>,
    /// What QEMU itself says its downtime was, in ms.
    pub qemu_downtime_ms: Option<f64>,
    /// When V stopped on A, in ns since the epoch.
    pub stop_ns: Option<u64>,
    /// When V resumed on B, in ns since the epoch.
    pub resume_ns: Option<u64>,
    /// When the fabric's route was moved, in ns since the epoch.
    pub converged_ns: Option<u64>,
    /// From the start of the migration until it was over on both sides, in ms.
    pub total_ms: f64,
    /// When the traffic did not come back: what both QEMUs and the guest's console say.
    pub silence: Option<String>,
    /// What katamaran left behind on the nodes, if that was looked at.
    pub leaks: Vec<String>,
    /// What the guest says of itself in the end, as `name=value` words.
    pub guest: Option<String>,
    /// UDP packets of the client that reached V's echo, by what V says.
    pub received_by_guest: Option<u64>,
    /// katamaran on A; none for a baseline.
    pub source: Option<SideResult>,
    /// katamaran on B; none for a baseline.
    pub dest: Option<SideResult>,
}

/// One of the `name=value` words that a guest says of itself.
#[must_use]
pub(super) fn said_by_guest(status: &str, name: &str) -> Option<u64> {
    let mut words = status.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value?.parse().ok()
}

impl MigrationRun {
    /// Datagrams that reached the guest's kernel and found the echo's socket full: lost, but not on the way.
    #[must_use]
    pub fn dropped_in_guest(&self) -> Option<u64> {
        said_by_guest(self.guest.as_ref()?, "udp_dropped")
    }

    /// UDP packets that V received after one with a higher number, by what V says. What the client sees beyond these was overtaken on its
    /// way back from V.
    #[must_use]
    pub fn late_at_guest(&self) -> Option<u64> {
        said_by_guest(self.guest.as_ref()?, "udp_late")
    }

    /// UDP packets that were sent and did not reach V's echo, whatever became of the answers.
    #[must_use]
    pub fn missed_by_guest(&self) -> Option<u64> {
        let sent: u64 = self.client.udp().map(|udp| udp.sent).sum();
        sent.checked_sub(self.received_by_guest?)
    }

    /// When each packet that came back late was sent and came back, and that which overtook it, beside the moments of the migration: lines
    /// for people, at most `most`.
    fn told_overtaken(&self, most: usize) -> Vec<String> {
        let moments = [
            ("STOP", self.stop_ns),
            ("RESUME", self.resume_ns),
            ("convergence", self.converged_ns),
        ];
        let beside = |at_ns: u64| {
            let near = moments.iter().filter_map(|(name, moment)| {
                Some((*name, (*moment)?.abs_diff(at_ns), at_ns >= (*moment)?))
            });
            match near.min_by_key(|(_, distance, _)| *distance) {
                Some((name, distance, after)) => format!(
                    "{:.3} ms {} {name}",
                    distance as f64 / 1e6,
                    if after { "after" } else { "before" }
                ),
                None => format!("at {at_ns}"),
            }
        };
        let late = self.client.udp().flat_map(|udp| udp.record.overtaken());
        late.take(most).map(|late| format!(
            "number {} sent {}, back after {:.3} ms, overtaken by {} sent {:.3} ms after it, back after {:.3} ms",
            late.number, beside(late.sent_ns), late.at_ns.saturating_sub(late.sent_ns) as f64 / 1e6,
            late.by, late.by_sent_ns.saturating_sub(late.sent_ns) as f64 / 1e6, late.by_at_ns.saturating_sub(late.by_sent_ns) as f64 / 1e6,
        )).collect()
    }

    /// Everything that is known, for a run that is not as it should be.
    #[must_use]
    pub fn told(&self) -> String {
        let sides = [("source", &self.source), ("dest", &self.dest)];
        let told = sides.map(|(name, side)| {
            let side = side.clone().unwrap_or_default();
            format!("--- {name}\n{}{}", side.stdout, side.stderr)
        });
        format!(
            "{}\n{}\nleaks: {:#?}\nsilence: {:?}\n{}",
            self.summary(),
            self.told_overtaken(OVERTAKEN_TOLD).join("\n"),
            self.leaks,
            self.silence,
            told.concat()
        )
    }

    /// One line for people: what was lost, and how long what was away.
    #[must_use]
    pub fn summary(&self) -> String {
        let show = |ms: Option<f64>| ms.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.1}"));
        let mut line = format!("{}: downtime_ms={}", self.kind, show(self.downtime_ms));
        for (name, udp) in [
            ("udp4", &self.client.udp_v4),
            ("udp6", &self.client.udp_v6),
            ("service-udp", &self.client.udp_service),
            ("second-udp4", &self.client.udp_second_v4),
            ("second-udp6", &self.client.udp_second_v6),
        ] {
            if let Some(udp) = udp {
                line.push_str(&format!(
                    " {name}[sent={} lost={} dup={} reordered={} gap_ms={:.1} p99_ms={:.1}]",
                    udp.sent,
                    udp.lost,
                    udp.duplicated,
                    udp.reordered,
                    udp.longest_gap_ms,
                    udp.latency_p99_ms
                ));
            }
        }
        for (name, tcp) in [
            ("tcp4", &self.client.tcp_v4),
            ("tcp6", &self.client.tcp_v6),
            ("service", &self.client.tcp_service),
            ("service6", &self.client.tcp_service_v6),
        ] {
            if let Some(tcp) = tcp {
                line.push_str(&format!(
                    " {name}[bytes={} intact={} stall_ms={:.1}]",
                    tcp.echoed_bytes, tcp.intact, tcp.longest_stall_ms
                ));
                if let Some(why) = &tcp.broken {
                    line.push_str(&format!("({} sent: {why})", tcp.sent_bytes));
                }
            }
        }
        if let Some(disk) = &self.client.disk {
            line.push_str(&format!(
                " disk[acknowledged={} lost={} torn={}]",
                disk.acknowledged(),
                disk.lost(),
                disk.torn()
            ));
        }
        for (name, side) in [("source", &self.source), ("dest", &self.dest)] {
            if let Some(side) = side {
                let status = side
                    .status
                    .map_or_else(|| "?".to_owned(), |code| code.to_string());
                line.push_str(&format!(" {name}_exit={status}"));
                let verdict = side
                    .report
                    .as_ref()
                    .and_then(|report| report["verdict"].as_str());
                if let Some(verdict) = verdict {
                    line.push_str(&format!(" {name}_verdict={verdict}"));
                }
            }
        }
        if let Some(missed) = self.missed_by_guest() {
            line.push_str(&format!(" not_at_guest={missed}"));
        }
        if let Some(late) = self.late_at_guest() {
            line.push_str(&format!(" late_at_guest={late}"));
        }
        if self.source.is_some() {
            line.push_str(&format!(" leaks={}", self.leaks.len()));
        }
        line
    }
}
