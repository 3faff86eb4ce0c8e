//! Dropped at a tap.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use crate::frame::Frame;
use crate::queue::TRANSMIT;
use crate::require;
use crate::stage::{BEHIND_TAP, Space, Stage};
use crate::tracer::{Expected, Tracer};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;

/// A persistent tap in the node, opened as QEMU opens it, and the VM's route to it.
fn tap(stage: &Stage) -> File {
    stage.node.ip(&format!(
        "tuntap add tap0 mode tap
         link set tap0 txqueuelen 1000
         link set tap0 up
         route add {BEHIND_TAP}/32 dev tap0
         neigh add {BEHIND_TAP} lladdr 02:00:00:00:00:06 dev tap0"
    ));
    open(&stage.node)
}

fn open(space: &Space) -> File {
    space.run(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = libc::c_char::try_from(*from).unwrap();
        }
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI;
        // SAFETY: an open descriptor and a request that outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        file
    })
}

/// Takes all frames that wait.
fn read_all(mut tap: &File) -> usize {
    let mut frames = 0;
    loop {
        match tap.read(&mut [0; 2000]) {
            Ok(_) => frames += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_ring() {
    require!();
    let stage = Stage::new();
    let tap = tap(&stage);
    let tracer = Tracer::start(&stage);
    stage.send(BEHIND_TAP, 10);
    tracer.expect_silence("the ring is long");
    assert!(read_all(&tap) >= 10);

    stage.node.ip("link set tap0 txqueuelen 2");
    stage.send(BEHIND_TAP, 10);
    let expected = Expected {
        reasons: &["FULL_RING"],
        hop: "tap",
        symbols: &["tun_net_xmit"],
        device: "tap0",
        space: &stage.node,
    };
    tracer.expect(8, &expected);
}

/// A tap that nobody has open does not run: the kernel's own discipline drops, before there is a ring.
#[test]
fn nobody_has_it_open() {
    require!();
    let stage = Stage::new();
    let tap = tap(&stage);
    let tracer = Tracer::start(&stage);
    stage.send(BEHIND_TAP, 5);
    tracer.expect_silence("it is open");
    assert!(read_all(&tap) >= 5);

    drop(tap);
    // For a moment the tap itself still drops.
    let down = || {
        let link = ["-j", "link", "show", "tap0"];
        let link = stage.node.netns().command("ip", &link).unwrap();
        link.contains(r#""operstate":"DOWN""#)
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !down() {
        assert!(Instant::now() < deadline, "the tap still runs");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    stage.send(BEHIND_TAP, 5);
    let expected = Expected {
        reasons: &["QDISC_DROP"],
        hop: "qdisc",
        symbols: &TRANSMIT,
        device: "tap0",
        space: &stage.node,
    };
    let told = tracer.expect(5, &expected);
    assert_eq!(told[0]["qdisc"], "noop", "{told:#?}");
}

/// Its ring dies with the reader: what a source's QEMU has not read when it ends.
#[test]
fn its_reader_ends_with_frames_unread() {
    require!();
    let stage = Stage::new();
    let tap = tap(&stage);
    let tracer = Tracer::start(&stage);
    stage.send(BEHIND_TAP, 5);
    tracer.expect_silence("they wait");
    drop(tap);
    let expected = Expected {
        reasons: &["NOT_SPECIFIED", "QUEUE_PURGE"],
        hop: "tap",
        symbols: &["tun_", "__tun_"],
        device: "tap0",
        space: &stage.node,
    };
    tracer.expect(5, &expected);
}

/// From the VM's side: the frame has not been looked at by anybody when it is dropped.
#[test]
fn what_the_vm_sends_while_the_tap_is_down() {
    require!();
    let stage = Stage::new();
    let mut tap = tap(&stage);
    let tracer = Tracer::start(&stage);
    tracer.expect_silence("nothing was sent");
    stage.node.ip("link set tap0 down");
    let refused = tap.write(&Frame::default().bytes());
    assert!(refused.is_err(), "{refused:?}");
    let expected = Expected {
        reasons: &["DEV_READY", "NOT_SPECIFIED"],
        hop: "tap",
        symbols: &["tun_get_user", "tun_"],
        device: "tap0",
        space: &stage.node,
    };
    tracer.expect(1, &expected);
}
