//! Namespaces, pairs, taps and frames for the tests.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use katamaran::net::link::MacAddr;
use katamaran::net::{NetNs, Netlink};
use nix::sched::{CloneFlags, unshare};

/// How long anything may take that the kernel does at once on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Prints the skip and returns `true` when a test can't run here.
pub(crate) fn skip(test: &str) -> bool {
    lacks(test, "root", nix::unistd::geteuid().is_root())
}

/// The same for a program that the test needs.
pub(crate) fn skip_without(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    lacks(
        std::thread::current().name().unwrap_or(program),
        program,
        there,
    )
}

fn lacks(test: &str, need: &str, there: bool) -> bool {
    if there {
        return false;
    }
    let required = std::env::var("KATAMARAN_REQUIRE").unwrap_or_default();
    let required = required
        .split(',')
        .any(|word| need == word || need.split('-').next() == Some(word));
    assert!(!required, "{test} needs {need}, which is required");
    println!("SKIP {test}: no {need}");
    true
}

/// Leaves the test with a SKIP line unless it runs as root.
macro_rules! require_root {
    () => {
        if crate::support::skip(std::thread::current().name().unwrap_or(module_path!())) {
            return;
        }
    };
}
pub(crate) use require_root;

/// A network namespace without a name.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) netns: NetNs,
}

impl Net {
    pub(crate) fn new() -> Self {
        let netns = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
                NetNs::current().unwrap()
            });
            made.join().unwrap()
        });
        let net = Self { netns };
        net.ip("link set lo up");
        net
    }

    pub(crate) fn netlink(&self) -> Netlink {
        self.netns.netlink().unwrap()
    }

    /// A path by which other processes can open the namespace.
    pub(crate) fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.netns.as_fd().as_raw_fd()
        )
    }

    #[track_caller]
    pub(crate) fn ip(&self, arguments: &str) {
        self.command("ip", arguments);
    }

    #[track_caller]
    pub(crate) fn tc(&self, arguments: &str) {
        self.command("tc", arguments);
    }

    /// Like [`Net::tc`], for kinds that a kernel may lack.
    pub(crate) fn try_tc(&self, arguments: &str) -> Result<(), String> {
        self.try_command("tc", arguments)
    }

    /// Loads rules.
    #[track_caller]
    pub(crate) fn nft(&self, rules: &str) {
        let mut nft = Command::new("nft");
        let output = self.netns.run(|| nft.arg(rules).output().unwrap()).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {rules}: {said}");
    }

    /// Sets a sysctl, by its path under `/proc/sys/net`.
    #[track_caller]
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.netns
            .run(|| std::fs::write(&path, value))
            .unwrap()
            .unwrap_or_else(|error| panic!("write {value} to {path}: {error}"));
    }

    #[track_caller]
    fn command(&self, program: &str, arguments: &str) {
        if let Err(text) = self.try_command(program, arguments) {
            panic!("{program} {arguments}: {text}");
        }
    }

    fn try_command(&self, program: &str, arguments: &str) -> Result<(), String> {
        let output = self
            .netns
            .run(|| {
                Command::new(program)
                    .args(arguments.split_whitespace())
                    .output()
                    .unwrap()
            })
            .unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned())
    }

    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let socket = self
            .netns
            .run(|| UdpSocket::bind(address).unwrap())
            .unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Netlink sockets of user space that are open in the namespace.
    pub(crate) fn netlink_sockets(&self) -> usize {
        let table = self
            .netns
            .run(|| std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap())
            .unwrap();
        table
            .lines()
            .skip(1)
            .filter(|line| {
                line.split_whitespace()
                    .nth(2)
                    .is_some_and(|port| port != "0")
            })
            .count()
    }
}

/// Two namespaces joined by a pair of devices, `left` in the first and `right` in the second.
pub(crate) fn pair(left: &str, right: &str, mtu: u32) -> (Net, Net) {
    let (a, b) = (Net::new(), Net::new());
    a.ip(&format!(
        "link add {left} mtu {mtu} type veth peer name {right} mtu {mtu} netns {}",
        b.path()
    ));
    a.ip(&format!("link set {left} addrgenmode none"));
    b.ip(&format!("link set {right} addrgenmode none"));
    a.ip(&format!("link set {left} up"));
    b.ip(&format!("link set {right} up"));
    (a, b)
}

mod tun {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr_bad!(
        set_header_size,
        nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
    );
}

/// A tap as QEMU opens it: with virtio-net headers, non-blocking.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) files: Vec<File>,
    pub(crate) index: u32,
    header: usize,
}

const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

pub(crate) const TAP: &str = "tap0";
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const VM: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub(crate) const VM_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

impl Tap {
    /// A tap that is up, with an address, and a fixed neighbour entry for the VM behind it.
    pub(crate) fn new(net: &Net) -> Self {
        Self::with(net, 1, 12)
    }

    pub(crate) fn with(net: &Net, queues: usize, header: i32) -> Self {
        let flags =
            IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let files = net
            .netns
            .run(|| (0..queues).map(|_| open(flags, header)).collect())
            .unwrap();
        net.ip(&format!("link set {TAP} addrgenmode none"));
        net.ip(&format!("addr add {NODE}/24 dev {TAP}"));
        net.ip(&format!("link set {TAP} up"));
        net.ip(&format!("neigh add {VM} lladdr {VM_MAC} dev {TAP}"));
        let index = net
            .netns
            .run(|| nix::net::if_::if_nametoindex(TAP).unwrap())
            .unwrap();
        Self {
            files,
            index,
            header: usize::try_from(header).unwrap(),
        }
    }

    /// Everything that can be read now, without headers.
    pub(crate) fn read_all(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        for file in &mut self.files {
            loop {
                match file.read(&mut buffer) {
                    Ok(length) => frames.push(buffer[self.header..length].to_vec()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("read from the tap: {error}"),
                }
            }
        }
        frames
    }

    /// Tells the kernel that the reader finishes checksums itself, as QEMU does for its guest.
    pub(crate) fn offload(&self) {
        const TUN_F_CSUM: i32 = 1;
        // SAFETY: takes an integer, touches no memory of ours.
        unsafe { tun::set_offload(self.files[0].as_raw_fd(), TUN_F_CSUM).unwrap() };
    }

    /// Gives frames a header of another length from now on, as QEMU does when its guest's driver comes up.
    pub(crate) fn set_header(file: &File, header: i32) {
        // SAFETY: gets a pointer to what it reads, valid for the call.
        unsafe { tun::set_header_size(file.as_raw_fd(), &raw const header).unwrap() };
    }

    /// Hands the first queue to a child process, as its standard input, and the second as its
    /// standard output.
    pub(crate) fn hand_over(self) -> Holder {
        let mut files = self.files.into_iter().map(Stdio::from);
        let child = Command::new("sleep")
            .arg("600")
            .stdin(files.next().unwrap())
            .stdout(files.next().unwrap_or_else(Stdio::null))
            .spawn()
            .unwrap();
        assert!(
            files.next().is_none(),
            "no more than two queues can be handed over"
        );
        Holder(child)
    }
}

fn open(flags: i16, header: i32) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: both calls get pointers to what they read, valid for the call.
    unsafe {
        tun::set_iff(file.as_raw_fd(), &raw const request).unwrap();
        tun::set_header_size(file.as_raw_fd(), &raw const header).unwrap();
    }
    file
}

/// A child process that holds a tap and never reads it: a stopped QEMU.
#[derive(Debug)]
pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0
            .kill()
            .and_then(|()| self.0.wait())
            .expect("the child is ours to end");
    }
}

const PORT: u16 = 5000;

/// Sends numbered packets to the VM behind the tap, through the whole stack.
pub(crate) fn send_numbered(net: &Net, numbers: std::ops::Range<u32>) {
    let socket = net.udp(&format!("{NODE}:0"));
    for number in numbers {
        socket.send_to(&number.to_be_bytes(), (VM, PORT)).unwrap();
    }
}

/// The number in a frame that [`send_numbered`] or [`numbered_frame`] made.
pub(crate) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame[42..].first_chunk().unwrap())
}

/// A numbered packet for the VM, as a frame.
pub(crate) fn numbered_frame(number: u32) -> Vec<u8> {
    udp_frame(
        (VM_MAC, VM),
        (MacAddr([2, 0, 0, 0, 0, 1]), NODE),
        PORT,
        &number.to_be_bytes(),
    )
}

/// An Ethernet frame with an unfragmentable UDP packet in it.
pub(crate) fn udp_frame(
    (to_mac, to): (MacAddr, Ipv4Addr),
    (from_mac, from): (MacAddr, Ipv4Addr),
    port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let udp = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = to_mac.0.to_vec();
    frame.extend(from_mac.0);
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(port.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// Waits until `done` says so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}
