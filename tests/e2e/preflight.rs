//! `katamaran preflight` on both nodes of a real lab: what is there is found, what is taken away is told in its line,
//! and nobody is disturbed.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use katamaran_tests::lab::{
    GUEST_MAC, GUEST_V4, GUEST_V6, LabConfig, Node, Process, QemuVersion, TAP, UNDERLAY,
};
use katamaran_tests::leak::{Scope, Snapshot};
use katamaran_tests::run::{
    Migration, MigrationOptions, Stage, StageOptions, Storage, TrafficSpec, katamaran_binary,
};
use serde_json::Value;

use crate::support::{both, report, require};

fn stage(qemu: QemuVersion) -> Stage {
    Stage::set(StageOptions {
        lab: LabConfig {
            qemu,
            ..LabConfig::default()
        },
        traffic: TrafficSpec {
            pps_v4: 200,
            ..TrafficSpec::default()
        },
        storage: Storage::Local(16),
        ..StageOptions::default()
    })
    .unwrap()
}

/// What a preflight told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: Option<i32>,
    json: Value,
    /// For messages.
    _stderr: String,
}

impl Told {
    /// The lines of this name, as `status: found`.
    fn lines(&self, area: &str, name: &str) -> Vec<String> {
        let checks = self.json["checks"].as_array().into_iter().flatten();
        let text =
            |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
        checks
            .filter(|check| check["area"] == area && check["name"] == name)
            .map(|check| format!("{}: {}", text(check, "status"), text(check, "found")))
            .collect()
    }

    /// Fails unless there is one such line, and it starts with `status` and has all words.
    #[track_caller]
    pub(crate) fn expect(&self, area: &str, name: &str, status: &str, words: &[&str]) {
        let lines = self.lines(area, name);
        let [line] = lines.as_slice() else {
            panic!("{} lines {area}/{name} in {self:#?}", lines.len())
        };
        assert!(
            line.starts_with(&format!("{status}: ")),
            "{line}\n{self:#?}"
        );
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line}\n{self:#?}");
        }
    }

    fn missing(&self) -> Vec<String> {
        let checks = self.json["checks"].as_array().into_iter().flatten();
        checks
            .filter(|check| check["status"] == "missing")
            .map(|check| check["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Runs a preflight on a node.
pub(crate) fn run(stage: &Stage, node: Node, args: &[String]) -> Told {
    run_by(stage, node, &[], args)
}

/// The same, by another program that is given the command.
fn run_by(stage: &Stage, node: Node, wrapper: &[&str], args: &[String]) -> Told {
    let netns = stage.lab.network().node(node);
    let binary = katamaran_binary().unwrap().display().to_string();
    let mut words = wrapper.to_vec();
    words.extend([binary.as_str(), "preflight", "--json"]);
    let output = netns
        .run(|| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).args(args).output().unwrap()
        })
        .unwrap();
    Told {
        status: output.status.code(),
        json: serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|err| panic!("{err}: {output:?}")),
        _stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The flags of a migration from A.
pub(crate) fn source_flags(stage: &Stage) -> Vec<String> {
    vec![
        "--mode=source".to_owned(),
        format!("--qmp={}", stage.guest_a.qmp_path().display()),
        format!("--dest-ip={},{}", Node::B.ipv4(), Node::B.ipv6()),
        format!("--vm-ip={GUEST_V4},{GUEST_V6}"),
    ]
}

/// The flags of a migration to B.
pub(crate) fn dest_flags(stage: &Stage) -> Vec<String> {
    vec![
        "--mode=dest".to_owned(),
        format!("--qmp={}", stage.guest_b.qmp_path().display()),
    ]
}

pub(crate) fn and(mut flags: Vec<String>, more: &[&str]) -> Vec<String> {
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    flags
}

fn with_dest(mut flags: Vec<String>, address: &str) -> Vec<String> {
    flags.retain(|flag| !flag.starts_with("--dest-ip=") && !flag.starts_with("--vm-ip="));
    and(
        flags,
        &[
            &format!("--dest-ip={address}"),
            &format!("--vm-ip={GUEST_V4}"),
        ],
    )
}

#[test]
fn what_is_there_is_found_and_a_migration_that_follows_is_not_disturbed() {
    require!(Root, Bpf, Lab);
    let mut stage = stage(QemuVersion::V10_0);
    let before = Snapshot::take(Scope::NamespacesOnly, stage.nodes()).unwrap();

    let told = run(&stage, Node::B, &dest_flags(&stage));
    assert_eq!(told.status, Some(0), "{told:#?}");
    told.expect("qemu", "version", "ok", &["QEMU 10."]);
    told.expect("qemu", "vm", "ok", &["waits"]);
    told.expect("qemu", "capabilities", "ok", &["late-block-activate"]);
    told.expect("qemu", "drives", "ok", &["drive-virtio-disk0"]);
    told.expect("wiring", "tap", "ok", &[TAP, "MTU 1450", "read by QEMU"]);
    told.expect("wiring", "attachment", "ok", &["the tap itself"]);
    told.expect("wiring", "nic", "ok", &[GUEST_MAC]);
    told.expect("port", "listen", "ok", &["7482"]);

    // Nobody waits on B yet.
    let told = run(&stage, Node::A, &source_flags(&stage));
    assert_eq!(told.status, Some(2), "{told:#?}");
    assert_eq!(told.missing(), ["destination"]);
    told.expect("port", "destination", "missing", &["10.0.2.2:7482"]);

    let unchanged = |stage: &Stage, before: &Snapshot| {
        let deadline = Instant::now() + Duration::from_secs(5);
        before.wait_until_restored(Scope::NamespacesOnly, stage.nodes(), deadline)
    };
    unchanged(&stage, &before).unwrap();

    let mut asked = None;
    let options = MigrationOptions {
        leaks: None,
        ..MigrationOptions::default()
    };
    let migration = Migration::begin_after(&mut stage, &options, |stage| {
        let before = Snapshot::take(Scope::NamespacesOnly, stage.nodes())?;
        for _ in 0..2 {
            asked = Some(run(stage, Node::A, &source_flags(stage)));
        }
        // It is told what the migration would be told, and goes on waiting.
        let other = run(
            stage,
            Node::A,
            &and(source_flags(stage), &["--shared-storage"]),
        );
        assert_eq!(other.missing(), ["vm-there"], "{other:#?}");
        other.expect("port", "vm-there", "missing", &["--shared-storage"]);
        // On its own node it is found at the port, and it holds its QEMU's monitor.
        let there = run(stage, Node::B, &dest_flags(stage));
        assert_eq!(there.missing(), ["qmp", "listen"], "{there:#?}");
        there.expect("port", "listen", "missing", &["by katamaran (process "]);
        unchanged(stage, &before)
    });
    let (ended, _) = migration.unwrap().end().unwrap();
    let told = asked.unwrap();
    assert_eq!(told.status, Some(0), "{told:#?}");
    told.expect("qemu", "vm", "ok", &["runs"]);
    told.expect("qemu", "commands", "ok", &["block-job-change"]);
    told.expect(
        "qemu",
        "drives",
        "ok",
        &["drive-virtio-disk0 (raw, 16 MiB)"],
    );
    told.expect("wiring", "redirect-device", "ok", &[TAP]);
    told.expect("port", "destination", "ok", &[env!("CARGO_PKG_VERSION")]);
    told.expect("port", "vm-there", "ok", &["QEMU 10.", TAP]);
    told.expect(
        "path",
        "tunnel",
        "ok",
        &["1450 (MTU of tap0) + 20", "+ 40 (outer header) <= 1500"],
    );
    assert_eq!(
        told.lines("path", "path-mtu"),
        [
            "ok: a packet of 1470 bytes arrives at 10.0.2.2 in one piece".to_owned(),
            format!(
                "ok: a packet of 1490 bytes arrives at {} in one piece",
                Node::B.ipv6()
            ),
        ]
    );
    // And so it goes.
    assert_eq!(ended.source.status, Some(0), "{}", both(&ended));
    assert_eq!(
        report(&ended.source)["verdict"],
        "proven",
        "{}",
        both(&ended)
    );
}

#[test]
fn what_is_taken_away_is_told_in_its_line() {
    require!(Root, Bpf, Lab);
    let stage = stage(QemuVersion::V7_2);
    let (source, dest) = (source_flags(&stage), dest_flags(&stage));
    let (a, b) = (&stage.lab.network().a, &stage.lab.network().b);

    // The port is taken.
    let taken = b
        .run(|| TcpListener::bind("0.0.0.0:7482").unwrap())
        .unwrap();
    let told = run(&stage, Node::B, &dest);
    assert_eq!(
        (told.status, told.missing()),
        (Some(2), vec!["listen".to_owned()])
    );
    let told = run(&stage, Node::B, &and(dest.clone(), &["--port=7999"]));
    assert_eq!(told.status, Some(0), "{told:#?}");
    drop(taken);

    // Another socket, nobody's socket, somebody else's, and one whose QEMU does something else.
    let told = run(
        &stage,
        Node::B,
        &["--mode=dest".into(), "--qmp=/nobody/here".into()],
    );
    told.expect("qemu", "qmp", "missing", &["/nobody/here"]);
    assert_eq!(told.status, Some(2), "{told:#?}");
    let client = UnixStream::connect(stage.guest_b.qmp_path()).unwrap();
    let told = run(&stage, Node::B, &dest);
    told.expect("qemu", "qmp", "missing", &["another client"]);
    drop(client);
    let qmp_a = format!("--qmp={}", stage.guest_a.qmp_path().display());
    let told = run(&stage, Node::A, &["--mode=dest".into(), qmp_a]);
    told.expect("qemu", "vm", "missing", &["running", "not waiting"]);

    // A QEMU that was started with an address takes the VM from nobody else.
    let place = |name: &str| stage.lab.dir().join(name).display().to_string();
    let (qmp, address) = (place("early.qmp"), place("early.ram"));
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-S",
            "-nodefaults",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-m",
            "16",
        ])
        .args(["-qmp", &format!("unix:{qmp},server=on,wait=off")])
        .args(["-incoming", &format!("unix:{address}")]);
    let early = Process::spawn("early QEMU", command, Some(b)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(&qmp).is_err() {
        assert!(Instant::now() < deadline, "no monitor at {qmp}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let told = run(
        &stage,
        Node::B,
        &["--mode=dest".into(), format!("--qmp={qmp}")],
    );
    told.expect("qemu", "vm", "missing", &["-incoming defer"]);
    drop(early);

    // A QEMU that can't change how a mirror copies.
    let told = run(&stage, Node::A, &source);
    told.expect("qemu", "commands", "degraded", &["block-job-change"]);

    // Not enough room on this node's link, then not enough further on.
    a.ip(&format!("link set {UNDERLAY} mtu 1400")).unwrap();
    let told = run(&stage, Node::A, &source);
    told.expect(
        "path",
        "tunnel",
        "degraded",
        &["fragments", "1450 (MTU of tap0) + 20 (outer header) > 1400"],
    );
    let told = run(
        &stage,
        Node::A,
        &and(source.clone(), &["--tunnel-mode=ipip"]),
    );
    told.expect(
        "path",
        "tunnel",
        "missing",
        &["1450 (MTU of tap0) + 20 (outer header) > 1400"],
    );
    assert_eq!(told.status, Some(2), "{told:#?}");
    a.ip(&format!("link set {UNDERLAY} mtu 1500")).unwrap();
    let fabric = &stage.lab.network().fabric;
    fabric.ip("link set port-b mtu 1420").unwrap();
    let told = run(&stage, Node::A, &source);
    let lines = told.lines("path", "path-mtu");
    assert_eq!(lines.len(), 2, "{told:#?}");
    for line in lines {
        assert!(
            line.starts_with("degraded: ") && line.ends_with("the path takes 1420"),
            "{line}"
        );
    }
    told.expect("path", "tunnel", "degraded", &["> 1420"]);
    fabric.ip("link set port-b mtu 1500").unwrap();

    // No BPF file system, as in a container that was not given one.
    let hidden = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "umount /sys/fs/bpf && exec \"$@\"",
        "sh",
    ];
    let told = run_by(&stage, Node::B, &hidden, &dest);
    told.expect("kernel", "bpffs", "degraded", &["/sys/fs/bpf"]);
    assert_eq!(told.status, Some(0), "{told:#?}");

    // No such tap, the wrong namespace, an address that nobody has.
    let told = run(&stage, Node::A, &and(source.clone(), &["--tap=tap9"]));
    told.expect("wiring", "tap", "missing", &["tap9", TAP]);
    let told = run(&stage, Node::A, &dest);
    told.expect(
        "wiring",
        "attachment",
        "missing",
        &["another network namespace", "tcfilter"],
    );
    let told = run(&stage, Node::A, &with_dest(source, "10.0.2.3"));
    told.expect("path", "path-mtu", "unchecked", &["10.0.2.3"]);
    told.expect("port", "destination", "missing", &["10.0.2.3:7482"]);
}
