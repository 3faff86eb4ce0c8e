//! One migration of the matrix, and what it came to.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lab::{LabConfig, QemuVersion, Wiring};
use crate::run::{MigrationOptions, MigrationRun, StageOptions, TrafficSpec, run_migration};
use crate::show::elsewhere::release;

pub(super) const TUNNELS: [&str; 3] = ["ipip", "vxlan", "gre"];
pub(super) const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// Slow enough for an echo on an emulated machine, and each write of it is several full segments.
const TCP_BYTES_PER_SECOND: u64 = 200_000;

/// What is different from cell to cell on one kernel.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) tunnel: &'static str,
    pub(super) family: &'static str,
    pub(super) wiring: Wiring,
    /// Whether the kernel moves packets between tap and guest (vhost-net); takes a real QEMU.
    pub(super) vhost: bool,
}

impl Spec {
    /// Whether the kernel can't but reset a queue that V's packets go through, for the source's hook (no TCX before 6.6).
    /// A pod's eth0 has a place for filters, which Kata needs.
    fn resets_a_queue(&self) -> bool {
        !katamaran::ebpf::has_tcx() && !self.wiring.has_pod()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vhost = if self.vhost { " vhost" } else { "" };
        write!(f, "{} {} {}{vhost}", self.tunnel, self.family, self.wiring)
    }
}

/// Load and guest, the same for all cells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) qemu: QemuVersion,
    pub(super) pps: u32,
}

/// One cell, judged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) kernel: String,
    pub(super) name: String,
    pub(super) tunnel: String,
    pub(super) family: String,
    pub(super) wiring: String,
    pub(super) vhost: bool,
    pub(super) buffer: String,
    pub(super) sent: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    /// Bytes of the TCP stream that came back, right.
    pub(super) tcp: Option<u64>,
    pub(super) redirected: u64,
    /// Numbers of the outer headers that never came, and that came too late.
    pub(super) numbers: Option<(i64, u64)>,
    pub(super) verdict: String,
    /// Attaching the source's hook had to reset a queue.
    pub(super) queue_reset: bool,
    pub(super) downtime_ms: Option<f64>,
    pub(super) good: bool,
    /// What both sides said, if it is not good.
    pub(super) said: String,
}

/// Plays one.
pub(super) fn play(spec: &Spec, load: Load) -> Cell {
    let (v4, v6) = match spec.family {
        "IPv4" => (load.pps, 0),
        _ => (0, load.pps),
    };
    let tcp = |pps: u32| (pps > 0).then_some(TCP_BYTES_PER_SECOND);
    let run = run_migration(MigrationOptions {
        stage: StageOptions {
            lab: LabConfig {
                qemu: load.qemu,
                wiring: spec.wiring,
                vhost: spec.vhost,
                ..LabConfig::default()
            },
            traffic: TrafficSpec {
                pps_v4: v4,
                pps_v6: v6,
                tcp_v4: tcp(v4),
                tcp_v6: tcp(v6),
                ..TrafficSpec::default()
            },
            ..StageOptions::default()
        },
        // Looking at everything takes many processes, each of them long to start where this mostly runs.
        leaks: None,
        source_args: vec![format!("--tunnel-mode={}", spec.tunnel)],
        ..MigrationOptions::default()
    });
    let cell = Cell {
        kernel: release(),
        name: spec.to_string(),
        tunnel: spec.tunnel.to_owned(),
        family: spec.family.to_owned(),
        wiring: spec.wiring.to_string(),
        vhost: spec.vhost,
        ..Cell::default()
    };
    match run {
        Ok(run) => judge(cell, spec, &run),
        Err(error) => Cell {
            verdict: "no stage".to_owned(),
            said: format!("{error:#}"),
            ..cell
        },
    }
}

fn judge(cell: Cell, spec: &Spec, run: &MigrationRun) -> Cell {
    let sides = [&run.source, &run.dest].map(|side| side.clone().unwrap_or_default());
    let reports = sides
        .each_ref()
        .map(|side| side.report.clone().unwrap_or_default());
    let verdicts = reports
        .each_ref()
        .map(|report| report["verdict"].as_str().unwrap_or("none"));
    let proven = verdicts == ["proven"; 2] && sides.iter().all(|side| side.status == Some(0));
    let redirected = reports[0]["ledger"]["s3"]["packets"].as_u64().unwrap_or(0);
    let numbers = &reports[0]["ledger"]["destination"]["numbers"];
    let numbers = numbers["missing"].as_i64().zip(numbers["late"].as_u64());
    let as_it_should = match spec.resets_a_queue() {
        // What it drops is told, and never called proven. TCP makes up for it.
        true => verdicts != ["proven"; 2] && run.client.tcp().all(|tcp| tcp.intact),
        false => proven && run.client.is_perfect(),
    };
    let good = as_it_should
        && redirected > 0
        // Two streams on two CPUs may overtake each other there; one would be out of order for the client.
        && numbers.is_none_or(|(missing, _)| missing == 0);
    let sum = |count: fn(&crate::traffic::UdpResult) -> u64| run.client.udp().map(count).sum();
    Cell {
        buffer: buffer(&reports[0]),
        sent: sum(|udp| udp.sent),
        lost: sum(|udp| udp.lost),
        duplicated: sum(|udp| udp.duplicated),
        reordered: sum(|udp| udp.reordered),
        tcp: run
            .client
            .tcp()
            .map(|tcp| tcp.intact.then_some(tcp.echoed_bytes))
            .sum(),
        redirected,
        numbers,
        verdict: verdicts[0].to_owned(),
        queue_reset: spec.resets_a_queue(),
        downtime_ms: run.downtime_ms,
        good,
        said: if good { String::new() } else { run.told() },
        ..cell
    }
}

/// What held the packets, in one word.
fn buffer(report: &Value) -> String {
    let buffer = &report["buffer"];
    let kind = buffer
        .as_object()
        .and_then(|kinds| kinds.keys().next().cloned());
    let text = kind.unwrap_or_else(|| buffer.to_string());
    match text.as_str() {
        "tap-ring" => "ring".to_owned(),
        _ => text,
    }
}
