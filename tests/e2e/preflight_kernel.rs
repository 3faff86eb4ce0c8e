//! `katamaran preflight` on Linux 6.1, with modules and without: a kernel that has sch_plug and has no TCX.

use std::time::Duration;

use katamaran_tests::lab::KernelRun;
use katamaran_tests::run::katamaran_binary;
use serde_json::Value;

use crate::support::require;

const BOOT: Duration = Duration::from_secs(180);
/// What the node needs in any case.
const ALWAYS: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];
const QUEUES_AND_TUNNELS: [&str; 7] = [
    "sch_plug",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "vxlan",
    "ip_tunnel",
    "tunnel4",
    "ipip",
];

/// The lines of a preflight of that node.
fn checks(modules: &[&str], set_up: &str) -> Value {
    let (_status, console) = KernelRun {
        modules,
        set_up,
        program: &katamaran_binary().unwrap(),
        command: "mkdir /run; PROGRAM preflight --json 2>&1",
        deadline: BOOT,
    }
    .run()
    .unwrap();
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    let object = lines.split(|line| *line == "}").next().unwrap_or_default();
    let from = object.iter().position(|line| *line == "{");
    let json = from.map(|from| format!("{}\n}}", object[from..].join("\n")));
    let result: Value = json
        .and_then(|json| serde_json::from_str(&json).ok())
        .unwrap_or_else(|| panic!("no result:\n{console}"));
    result["checks"].clone()
}

#[track_caller]
fn expect(checks: &Value, name: &str, status: &str, words: &[&str]) {
    let mut all = checks.as_array().unwrap().iter();
    let check = all
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {checks:#}"));
    assert_eq!(check["status"], status, "{checks:#}");
    for word in words {
        assert!(
            check["found"].as_str().unwrap().contains(word),
            "{word}: {check}"
        );
    }
}

#[test]
fn an_older_kernel_is_told_for_what_it_has_and_lacks() {
    require!(Root, Bpf, Lab);
    let with_bpffs = "mount -t bpf bpf /sys/fs/bpf";
    let modules = [&ALWAYS[..], &QUEUES_AND_TUNNELS[..]].concat();
    let found = checks(&modules, with_bpffs);
    expect(&found, "programs", "ok", &[]);
    expect(&found, "tc-hook", "degraded", &["clsact"]);
    expect(&found, "drop-reports", "ok", &[]);
    expect(&found, "drop-reasons", "ok", &[]);
    expect(&found, "bpffs", "ok", &[]);
    expect(&found, "sch_plug", "ok", &[]);
    expect(&found, "tunnel-kinds", "ok", &["vxlan", "ipip"]);
    expect(&found, "plug-limit", "ok", &["125 MB"]);
    expect(&found, "leftovers", "ok", &[]);

    let found = checks(&ALWAYS, "");
    expect(&found, "bpffs", "degraded", &["/sys/fs/bpf"]);
    expect(&found, "sch_plug", "degraded", &[]);
    expect(&found, "tunnel-kinds", "degraded", &["no vxlan"]);

    // Without the hook there is no redirect.
    let found = checks(&["veth"], with_bpffs);
    expect(&found, "tc-hook", "missing", &[]);
}
