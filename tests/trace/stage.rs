//! A client, a node, and a VM behind it.
//!
//! ```text
//! client 10.80.0.2 eth0 --- up0 10.80.0.1 node vm0 --- eth0 10.90.0.5 vm
//!                                              tap0 --- (a descriptor)  10.90.0.6
//! ```
//!
//! fd80::2, fd80::1, fd90::5 beside them. 10.90.0.8 is an address behind `vm0` that nobody has.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use katamaran_tests::lab::Netns;

pub(crate) const VM: &str = "10.90.0.5";
pub(crate) const VM6: &str = "fd90::5";
pub(crate) const BEHIND_TAP: &str = "10.90.0.6";
pub(crate) const NOBODY: &str = "10.90.0.8";
pub(crate) const CLIENT: &str = "10.80.0.2";
pub(crate) const PORT: u16 = 7777;

/// MACs: of the node's end towards the client, and of the VM.
pub(crate) const UP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const UP_MAC_TEXT: &str = "02:00:00:00:00:01";
const VM_MAC_TEXT: &str = "02:00:00:00:00:05";
const GATEWAY_MAC_TEXT: &str = "02:00:00:00:00:02";

/// A namespace that is removed with its owner.
#[derive(Debug)]
pub(crate) struct Space(Netns);

impl Space {
    fn new(label: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ktt{}-{number}-{label}", std::process::id());
        let space = Self(Netns::create(&name).unwrap());
        space.sysctl("ipv6/conf/all/accept_dad", "0");
        space.sysctl("ipv6/conf/default/accept_dad", "0");
        space.ip("link set lo up");
        space
    }

    pub(crate) fn name(&self) -> &str {
        self.0.name()
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.0
    }

    /// `ip` commands, one a line.
    #[track_caller]
    pub(crate) fn ip(&self, commands: &str) {
        self.0.ip(commands).unwrap();
    }

    /// `tc` with arguments separated by blanks; one inside of an argument is written `_`.
    #[track_caller]
    pub(crate) fn tc(&self, arguments: &str) {
        self.command("tc", arguments);
    }

    /// A ruleset for `nft`.
    #[track_caller]
    pub(crate) fn nft(&self, rules: &str) {
        self.0.command("nft", &[rules]).unwrap();
    }

    #[track_caller]
    fn command(&self, program: &str, arguments: &str) {
        let arguments: Vec<String> = arguments
            .split_whitespace()
            .map(|argument| argument.replace('_', " "))
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.0.command(program, &arguments).unwrap();
    }

    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        self.0.sysctl(&[(name, value)]).unwrap();
    }

    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.0.run(body).unwrap()
    }

    pub(crate) fn ifindex(&self, device: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(device).unwrap())
    }

    pub(crate) fn socket(&self, address: &str) -> UdpSocket {
        self.run(|| UdpSocket::bind(address).unwrap())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // What is in the way was told by whatever failed before.
        drop(
            std::process::Command::new("ip")
                .args(["netns", "del", self.name()])
                .status(),
        );
    }
}

/// Everything in its place, and nothing dropped.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) client: Space,
    pub(crate) node: Space,
    pub(crate) vm: Space,
    /// Where the VM listens.
    pub(crate) listener: UdpSocket,
    sender: UdpSocket,
    sender6: UdpSocket,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let (client, node, vm) = (Space::new("client"), Space::new("node"), Space::new("vm"));
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            node.sysctl(name, value);
        }
        let to = |space: &Space| space.name().to_owned();
        node.ip(&format!(
            "link add up0 address {UP_MAC_TEXT} type veth peer name eth0 netns {}
             link add vm0 address {GATEWAY_MAC_TEXT} type veth peer name eth0 address {VM_MAC_TEXT} netns {}
             addr add 10.80.0.1/24 dev up0
             addr add fd80::1/64 dev up0 nodad
             addr add fe80::1/64 dev vm0 nodad
             link set up0 up
             link set vm0 up
             route add {VM}/32 dev vm0
             route add {NOBODY}/32 dev vm0
             -6 route add {VM6}/128 dev vm0",
            to(&client),
            to(&vm)
        ));
        client.ip(&format!(
            "addr add {CLIENT}/24 dev eth0
             addr add fd80::2/64 dev eth0 nodad
             link set eth0 up
             route add default via 10.80.0.1
             -6 route add default via fd80::1
             neigh add 10.80.0.1 lladdr {UP_MAC_TEXT} dev eth0"
        ));
        vm.ip(&format!(
            "addr add {VM}/32 dev eth0
             addr add {VM6}/128 dev eth0 nodad
             link set eth0 up
             route add 169.254.1.1 dev eth0 scope link
             route add default via 169.254.1.1 dev eth0
             -6 route add default via fe80::1 dev eth0
             neigh add 169.254.1.1 lladdr {GATEWAY_MAC_TEXT} dev eth0"
        ));
        node.ip(&format!("neigh add {VM} lladdr {VM_MAC_TEXT} dev vm0"));
        let stage = Self {
            listener: vm.socket(&format!("[::]:{PORT}")),
            sender: client.socket("0.0.0.0:0"),
            sender6: client.socket("[::]:0"),
            client,
            node,
            vm,
        };
        stage
            .listener
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // Addresses and neighbours are found, so that the first packet of a test is like every other.
        for target in [VM, VM6] {
            stage.arrives(target);
        }
        stage
    }

    /// Sends datagrams of 100 bytes from the client.
    pub(crate) fn send(&self, target: &str, packets: usize) {
        self.send_sized(target, packets, 72);
    }

    /// Sends datagrams with so many bytes in them.
    pub(crate) fn send_sized(&self, target: &str, packets: usize, bytes: usize) {
        let target = SocketAddr::new(target.parse::<IpAddr>().unwrap(), PORT);
        let socket = if target.is_ipv4() {
            &self.sender
        } else {
            &self.sender6
        };
        for _ in 0..packets {
            // An answer of ICMP to an earlier one is reported by the next send, which then does nothing.
            if socket.send_to(&vec![7; bytes], target).is_err() {
                socket.send_to(&vec![7; bytes], target).unwrap();
            }
        }
    }

    /// The client's socket.
    pub(crate) fn sender(&self) -> &UdpSocket {
        &self.sender
    }

    /// Sends until one arrives, and takes all that has arrived.
    #[track_caller]
    fn arrives(&self, target: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.listener.set_nonblocking(true).unwrap();
        loop {
            self.send(target, 1);
            thread::park_timeout(Duration::from_millis(20));
            if self.take_all() > 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{target} is not reached");
        }
        self.listener.set_nonblocking(false).unwrap();
    }

    fn take_all(&self) -> usize {
        let mut taken = 0;
        loop {
            match self.listener.recv(&mut [0; 2000]) {
                Ok(_) => taken += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Has the VM take so many packets.
    #[track_caller]
    pub(crate) fn receive(&self, packets: usize) {
        for number in 0..packets {
            let received = self.listener.recv(&mut [0; 2000]);
            assert!(received.is_ok(), "{number} of {packets} arrived");
        }
    }

    /// All namespaces' names.
    pub(crate) fn spaces(&self) -> [String; 3] {
        [&self.client, &self.node, &self.vm].map(|space| space.name().to_owned())
    }
}
