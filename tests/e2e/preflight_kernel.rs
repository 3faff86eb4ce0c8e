//! `katamaran preflight` on Linux 6.1, with modules and without: a kernel that has sch_plug and has no TCX.

use std::time::Duration;

use katamaran_tests::lab::{Kernel, KernelRun};
use katamaran_tests::run::katamaran_binary;
use serde_json::Value;

use crate::support::require;

const BOOT: Duration = Duration::from_secs(180);

/// The lines of a preflight of a node that can't load these modules.
fn checks(without: &[&str], set_up: &str) -> Value {
    let never: String = without
        .iter()
        .map(|module| format!("echo install {module} /bin/false >>/etc/modprobe.d/lab.conf\n"))
        .collect();
    let program = katamaran_binary().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    KernelRun {
        set_up: &format!("mkdir -p /etc/modprobe.d\n{never}{set_up}"),
        deadline: BOOT,
        ..KernelRun::new(
            Kernel::V6_1,
            [program.as_os_str(), "preflight".as_ref(), "--json".as_ref()],
        )
    }
    .run(&mut stdout, &mut stderr)
    .unwrap();
    let said = || String::from_utf8_lossy(&[&stdout[..], &stderr[..]].concat()).into_owned();
    let result: Value =
        serde_json::from_slice(&stdout).unwrap_or_else(|_| panic!("no result:\n{}", said()));
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
    let found = checks(&[], "");
    expect(&found, "programs", "ok", &[]);
    expect(&found, "tc-hook", "degraded", &["clsact"]);
    expect(&found, "drop-reports", "ok", &[]);
    expect(&found, "drop-reasons", "ok", &[]);
    expect(&found, "bpffs", "ok", &[]);
    expect(&found, "sch_plug", "ok", &[]);
    expect(&found, "tunnel-kinds", "ok", &["vxlan", "ipip"]);
    expect(&found, "plug-limit", "ok", &["125 MB"]);
    expect(&found, "conntrack", "ok", &[]);
    expect(&found, "leftovers", "ok", &[]);

    let found = checks(
        &["sch_plug", "vxlan", "nf_conntrack_netlink"],
        "umount /sys/fs/bpf\nmodprobe nf_conntrack",
    );
    expect(&found, "conntrack", "degraded", &["ctnetlink"]);
    expect(&found, "bpffs", "degraded", &["/sys/fs/bpf"]);
    expect(&found, "sch_plug", "degraded", &[]);
    expect(&found, "tunnel-kinds", "degraded", &["no vxlan"]);

    // Without the hook there is no redirect; and a kernel that has not loaded what tracks connections tracks none.
    let found = checks(&["sch_ingress"], "");
    expect(&found, "tc-hook", "missing", &[]);
    expect(&found, "conntrack", "ok", &["tracks no connections"]);
}
