//! Tests of the lab itself: a lab that leaks, or traffic that miscounts, would prove nothing.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use katamaran_tests::lab::{
    CLIENT_V4, ECHO_PORT, GUEST_V4, Lab, LabConfig, Netns, Node, Process, QemuVersion, Start,
};
use katamaran_tests::leak::{Scope, Snapshot};
use katamaran_tests::need::{Need, met};
use katamaran_tests::run::{Baseline, BaselineOptions, StageOptions, TrafficSpec, run_baseline};
use katamaran_tests::traffic::{Mark, UdpLoad, UdpTraffic};

const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! require {
    ($($need:ident),+) => {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        if !met(&test, &[$(Need::$need),+]) {
            return;
        }
    };
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn empty_lab() -> Lab {
    Lab::new(LabConfig::default()).unwrap()
}

fn namespaces_of(id: &str) -> usize {
    let names = std::fs::read_dir("/run/netns").unwrap().flatten();
    names
        .filter(|entry| entry.file_name().to_string_lossy().contains(id))
        .count()
}

/// Answers every datagram at the echo port of `netns` until `stop` is dropped.
fn echo_in(netns: &Netns) -> Echo {
    let socket = netns
        .run(|| UdpSocket::bind(("0.0.0.0", ECHO_PORT)).unwrap())
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..length], peer).unwrap();
            }
        }
    });
    Echo {
        stop: Some(stop),
        thread: Some(thread),
    }
}

struct Echo {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[test]
fn a_lab_is_gone_when_it_is_dropped() {
    require!(Root);
    let lab = empty_lab();
    let (id, dir) = (lab.id().to_owned(), lab.dir().to_owned());
    assert_eq!(namespaces_of(&id), 4);
    drop(lab);
    assert_eq!(namespaces_of(&id), 0);
    assert!(!dir.exists());
}

#[test]
fn a_lab_is_gone_after_a_panic() {
    require!(Root);
    let mut id = String::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let lab = empty_lab();
        id = lab.id().to_owned();
        panic!("on purpose");
    }));
    assert!(result.is_err());
    assert_eq!(namespaces_of(&id), 0);
}

#[test]
fn a_process_dies_with_its_owner_and_runs_in_its_namespace() {
    require!(Root);
    let lab = empty_lab();
    let mut command = Command::new("sleep");
    command.arg("1000");
    let process = Process::spawn("sleep", command, Some(&lab.network().a)).unwrap();
    let proc_dir = format!("/proc/{}", process.pid());
    let link = std::fs::read_link(format!("{proc_dir}/ns/net")).unwrap();
    let inode = lab.network().a.inode().unwrap();
    assert_eq!(link.to_string_lossy(), format!("net:[{inode}]"));
    drop(process);
    assert!(!std::path::Path::new(&proc_dir).exists());
}

#[test]
fn a_process_that_is_alive_at_its_deadline_is_an_error() {
    require!(Root);
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut process = Process::spawn("sleep", command, None).unwrap();
    assert!(
        process
            .wait_until(Instant::now() + Duration::from_millis(20))
            .is_err()
    );
}

#[test]
fn traffic_between_lab_and_echo_is_perfect() {
    require!(Root);
    let lab = empty_lab();
    let _echo = echo_in(&lab.network().a);
    let load = UdpLoad::new(Node::A.ipv4(), 1000);
    let traffic = UdpTraffic::start(&lab.network().client, load).unwrap();
    traffic.wait_for_more(500, deadline()).unwrap();
    let result = traffic.stop().unwrap();
    assert!(result.is_perfect(), "{result:?}");
}

#[test]
fn packets_that_a_filter_drops_are_counted_as_lost() {
    require!(Root);
    let lab = empty_lab();
    lab.drop_in_fabric("ip dscp 0x2e").unwrap();
    let _echo = echo_in(&lab.network().a);
    let mark = Some(Mark {
        every: 10,
        dscp: 0x2e,
        at_once: true,
    });
    let load = UdpLoad {
        mark,
        ..UdpLoad::new(Node::A.ipv4(), 1000)
    };
    let traffic = UdpTraffic::start(&lab.network().client, load).unwrap();
    traffic.wait_for_more(450, deadline()).unwrap();
    let result = traffic.stop().unwrap();
    assert_eq!(result.lost, result.sent.div_ceil(10), "{result:?}");
    assert!(
        result
            .lost_ranges
            .iter()
            .all(|(from, to)| from == to && from % 10 == 0)
    );
}

#[test]
fn the_leak_checker_finds_what_was_planted_and_nothing_else() {
    require!(Root);
    let lab = empty_lab();
    let a = &lab.network().a;
    let take = || Snapshot::take(Scope::NamespacesOnly, [a]).unwrap();
    let before = take();
    assert_eq!(before.diff(&take()), Vec::<String>::new());
    a.ip(&format!(
        "link add ktmleft type vxlan id 9 dev eth0 dstport 4789
         route add 10.9.9.9/32 via 10.0.1.1
         link set tap0 txqueuelen 7777
         neigh add {CLIENT_V4} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
    ))
    .unwrap();
    a.command("tc", &["qdisc", "add", "dev", "tap0", "clsact"])
        .unwrap();
    let diff = before.diff(&take()).join("\n");
    for planted in [
        "link ktmleft",
        "route 10.9.9.9",
        "txqueuelen tap0 7777",
        "neighbour 10.0.0.2",
        "clsact",
    ] {
        assert!(diff.contains(planted), "{planted} is not in\n{diff}");
    }
    a.ip(&format!(
        "link del ktmleft
         route del 10.9.9.9/32
         link set tap0 txqueuelen {}
         neigh del 10.0.0.2 dev eth0",
        LabConfig::default().tap_queue
    ))
    .unwrap();
    a.command("tc", &["qdisc", "del", "dev", "tap0", "clsact"])
        .unwrap();
    before
        .wait_until_restored(Scope::NamespacesOnly, [a], deadline())
        .unwrap();
}

#[test]
fn a_guest_of_either_qemu_boots_and_echoes_full_size_packets() {
    require!(Root, Lab);
    for qemu in [QemuVersion::V7_2, QemuVersion::V10_0] {
        let lab = Lab::new(LabConfig {
            qemu,
            tap_mtu: 1500,
            ..LabConfig::default()
        })
        .unwrap();
        let guest = lab.start_guest(Node::A, Start::Boot, &[]).unwrap();
        let echo = lab.wait_for_echo(Instant::now() + Duration::from_secs(90));
        echo.unwrap_or_else(|err| panic!("{err:#}\n{}", guest.output()));
        // 1500 less the IPv4 and UDP headers.
        let load = UdpLoad {
            size: 1472,
            ..UdpLoad::new(GUEST_V4, 200)
        };
        let traffic = UdpTraffic::start(&lab.network().client, load).unwrap();
        traffic.wait_for_more(100, deadline()).unwrap();
        let result = traffic.stop().unwrap();
        assert_eq!((result.lost, result.corrupted), (0, 0), "{result:?}");
    }
}

/// A 64 KiB BIOS whose reset vector is `lock addw $0, 0; hlt`.
fn bios_of_a_locked_instruction() -> Vec<u8> {
    const RESET_VECTOR: usize = 0xfff0;
    let code = [0xf0, 0x83, 0x06, 0x00, 0x00, 0x00, 0xf4];
    let mut bios = vec![0xf4; 0x1_0000];
    bios[RESET_VECTOR..RESET_VECTOR + code.len()].copy_from_slice(&code);
    bios
}

/// Without that a guest's card stops sending, once in some million packets: see `ONE_CPU`.
#[test]
fn a_locked_instruction_of_a_guest_is_a_barrier_for_either_qemu() {
    require!(Root, Lab);
    let dir = tempfile::tempdir().unwrap();
    let (bios, log) = (dir.path().join("bios"), dir.path().join("log"));
    std::fs::write(&bios, bios_of_a_locked_instruction()).unwrap();
    for qemu in [QemuVersion::V7_2, QemuVersion::V10_0] {
        let arguments = [
            "-bios",
            bios.to_str().unwrap(),
            "-d",
            "in_asm,op,nochain",
            "-D",
            log.to_str().unwrap(),
        ];
        let lab = Lab::new(LabConfig {
            qemu,
            extra_qemu_args: arguments.map(str::to_owned).to_vec(),
            ..LabConfig::default()
        })
        .unwrap();
        let _guest = lab.start_guest(Node::A, Start::Boot, &[]).unwrap();
        let deadline = deadline();
        let translated = loop {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            if let Some((_before, translated)) = log.split_once("lock addw")
                && let Some((translated, _after)) = translated.split_once("call hlt")
            {
                break translated.to_owned();
            }
            assert!(Instant::now() < deadline, "{qemu:?}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(translated.contains("atomic_add"), "{qemu:?}: {translated}");
        std::fs::remove_file(&log).unwrap();
    }
}

#[test]
fn the_simple_orders_lose_packets_and_keep_connections() {
    require!(Root, Lab);
    for kind in [Baseline::Plain, Baseline::AfterStop] {
        let traffic = TrafficSpec {
            pps_v4: 1000,
            tcp_v4: Some(200_000),
            ..TrafficSpec::default()
        };
        let stage = StageOptions {
            traffic,
            ..StageOptions::default()
        };
        let options = BaselineOptions {
            stage,
            ..BaselineOptions::default()
        };
        let run = run_baseline(kind, &options).unwrap();
        assert!(run.silence.is_none(), "{}", run.silence.unwrap());
        // Were nothing lost here, a run without loss elsewhere would say nothing.
        assert!(run.client.lost() > 0, "{}", run.summary());
        assert!(run.client.tcp().all(|tcp| tcp.intact), "{}", run.summary());
        assert!(
            run.downtime_ms.is_some_and(|ms| ms > 0.0),
            "{}",
            run.summary()
        );
    }
}
