//! A lab: some namespaces, a network between them, and guests on its nodes.
//!
//! Everything it makes is named `kt<six hex digits>-…` and is gone when the [`Lab`] is dropped, also
//! after a panic; [`remove_labs_on_signals`] covers SIGINT and SIGTERM, [`sweep`] what was killed.

mod cleanup;
mod cpio;
mod identity;
mod image;
mod kernel;
mod kernel_run;
mod modules;
mod netns;
mod peer;
mod process;
mod qemu;
mod qmp;
mod topology;
mod wiring;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

pub use self::cleanup::{remove_labs_on_signals, sweep};
pub use self::identity::Identity;
pub use self::image::{GuestImage, cache_dir};
pub use self::kernel::Kernel;
pub use self::kernel_run::KernelRun;
pub use self::netns::Netns;
pub use self::process::Process;
pub(crate) use self::process::program_beside;
pub use self::qemu::{Guest, GuestSpec, QemuVersion, Start};
pub use self::qmp::{Event, Qmp};
pub use self::topology::{
    CLIENT_V4, CLIENT_V6, GUEST_MAC, GUEST_V4, GUEST_V6, Network, Node, SERVICE_PORT, SERVICE_V4,
    SERVICE_V6, TAP, UNDERLAY, device_counter,
};
pub use self::wiring::{BRIDGE, POD_TAP, POD_VETH, Wiring};

/// The guest's echo port, UDP and TCP.
pub const ECHO_PORT: u16 = 7;
/// The guest's control port, UDP.
pub const CONTROL_PORT: u16 = 8;

/// How long one probe waits for its answer before the next is sent.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Which QEMU the guests run in.
    pub qemu: QemuVersion,
    /// How V hangs on its nodes.
    pub wiring: Wiring,
    /// MiB of RAM of a guest.
    pub memory_mib: u32,
    /// MTU of the taps and of the guest; the underlay's is 1500.
    pub tap_mtu: u32,
    /// Length of the taps' queues. A tap drops what does not fit, and the guest is slow: with the
    /// kernel's default of 1000, a busy machine alone is enough to lose packets at 2,000 a second.
    pub tap_queue: u32,
    /// Memory load from the start: MB/s over MiB.
    pub dirty: Option<(u64, u64)>,
    /// Whether the block nodes of the drives have names, so that errors can be injected into them.
    pub named_drives: bool,
    /// Whether the nodes translate a service's address to V's, and have a firewall that knows connections.
    pub guarded: bool,
    /// Whether the kernel moves packets between tap and guest (vhost-net).
    pub vhost: bool,
    /// Whether V has a second network card, whose tap is in the nodes' namespaces, and routed.
    pub second_nic: bool,
    /// More arguments for QEMU, on both nodes.
    pub extra_qemu_args: Vec<String>,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            qemu: QemuVersion::V10_0,
            wiring: Wiring::default(),
            memory_mib: 128,
            tap_mtu: 1450,
            tap_queue: 16_384,
            dirty: None,
            named_drives: false,
            guarded: false,
            vhost: false,
            second_nic: false,
            extra_qemu_args: Vec::new(),
        }
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    id: String,
    config: LabConfig,
    network: Network,
    belongings: Arc<cleanup::Belongings>,
    /// A cable is pulled.
    cut: AtomicBool,
}

impl Lab {
    /// Makes the namespaces and connects them; no guest runs yet.
    ///
    /// # Errors
    ///
    /// When not root, or when a kernel feature is missing; nothing is left then.
    pub fn new(config: LabConfig) -> Result<Self> {
        let id = topology::fresh_id()?;
        let belongings = cleanup::Belongings::register(&id)?;
        let network = Network::create(&id, &config, |name| belongings.own_netns(name));
        match network {
            Ok(network) => Ok(Self {
                id,
                config,
                network,
                belongings,
                cut: AtomicBool::new(false),
            }),
            Err(err) => {
                belongings.remove();
                belongings.forget();
                Err(err)
            }
        }
    }

    /// The lab's six hex digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it was asked to be like.
    #[must_use]
    pub fn config(&self) -> &LabConfig {
        &self.config
    }

    /// The namespaces.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Lets what has been A be B from now on, and the other way round.
    pub fn swap_nodes(&mut self) {
        self.network.swap_nodes();
    }

    /// A directory for sockets, logs and images; gone with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.belongings.dir()
    }

    /// Makes a file system with room for so many bytes in the lab's directory; gone with the lab.
    ///
    /// # Errors
    ///
    /// When it can't be mounted.
    pub fn small_file_system(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let dir = self.dir().join(name);
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        self.belongings.own_mount(&dir);
        let options = format!("size={bytes}");
        mount(
            Some("katamaran-lab"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("mount a tmpfs on {}", dir.display()))?;
        Ok(dir)
    }

    /// Starts a guest on a node, with `drives` as its disks.
    ///
    /// # Errors
    ///
    /// When the image can't be built or QEMU does not start.
    pub fn start_guest(&self, node: Node, start: Start, drives: &[&Path]) -> Result<Guest> {
        let name = format!("guest-{}", self.network.first(node).place());
        self.start_as(self.cards(), &name, node, start, drives)
    }

    /// Gives both nodes a tap for another VM, and routes its addresses to A.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn wire(&self, vm: &Identity) -> Result<()> {
        for node in [Node::A, Node::B] {
            wiring::prepare_beside(self.network.node(node), vm, &self.config)?;
        }
        self.network.route_to(vm, Node::A)
    }

    /// Starts a guest for another VM, which has been wired.
    ///
    /// # Errors
    ///
    /// When the image can't be built or QEMU does not start.
    pub fn start_beside(&self, vm: &Identity, node: Node, start: Start) -> Result<Guest> {
        let name = format!("{}-{}", vm.tap, self.network.first(node).place());
        self.start_as(vec![vm.clone()], &name, node, start, &[])
    }

    fn start_as(
        &self,
        cards: Vec<Identity>,
        name: &str,
        node: Node,
        start: Start,
        drives: &[&Path],
    ) -> Result<Guest> {
        let image = match self.config.qemu {
            QemuVersion::StandIn => GuestImage::none(),
            QemuVersion::V7_2 | QemuVersion::V10_0 => GuestImage::prepare()?,
        };
        let spec = GuestSpec {
            qemu: self.config.qemu,
            cards,
            memory_mib: self.config.memory_mib,
            mtu: self.config.tap_mtu,
            dirty: self.config.dirty,
            drives: drives.iter().map(|path| path.to_path_buf()).collect(),
            named_drives: self.config.named_drives,
            vhost: self.config.vhost,
            extra_args: self.config.extra_qemu_args.clone(),
        };
        Guest::start(
            &spec,
            &image,
            self.network.guest_netns(node),
            self.dir(),
            name,
            start,
        )
    }

    /// Waits until V answers the client on both address families; returns how long that took.
    ///
    /// # Errors
    ///
    /// When it has not answered at the deadline.
    pub fn wait_for_echo(&self, deadline: Instant) -> Result<Duration> {
        let mut took = Duration::ZERO;
        for card in self.cards() {
            took += self.wait_for_answers(&card, deadline)?;
        }
        Ok(took)
    }

    /// V's network cards: the first, and the second if it has one.
    #[must_use]
    pub fn cards(&self) -> Vec<Identity> {
        let wiring = self.config.wiring;
        let first = Identity::v(wiring.tap());
        let second = self.config.second_nic.then(|| wiring.second());
        std::iter::once(first).chain(second).collect()
    }

    /// The same for another VM.
    ///
    /// # Errors
    ///
    /// When it has not answered at the deadline.
    pub fn wait_for_answers(&self, vm: &Identity, deadline: Instant) -> Result<Duration> {
        let started = Instant::now();
        for address in vm.addresses() {
            self.ask(SocketAddr::new(address, ECHO_PORT), b"katamaran", deadline)?;
        }
        Ok(started.elapsed())
    }

    /// Sends the guest a command (see `tests/guest`) and returns its answer.
    ///
    /// # Errors
    ///
    /// When no answer comes in 5 s, or the guest refuses.
    pub fn guest_command(&self, command: &str) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let to = SocketAddr::new(IpAddr::V4(GUEST_V4), CONTROL_PORT);
        let answer = self.ask(to, command.as_bytes(), deadline)?;
        if answer.starts_with("error") {
            bail!("the guest refused {command:?}: {answer}");
        }
        Ok(answer)
    }

    /// The "CNI": points the fabric's routes for V at node B.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn converge(&self) -> Result<()> {
        self.network.route_guest_to(Node::B)
    }

    /// Pulls a node's cable out of the fabric: everything to and from it is gone, without a word.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn cut_link(&self, node: Node) -> Result<()> {
        let port = self.network.first(node).fabric_port();
        self.cut.store(true, Ordering::Relaxed);
        self.network.fabric.ip(&format!("link set {port} down"))
    }

    /// Whether a cable is pulled.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Puts the cable back in. The routes through it are gone; [`Lab::converge`] makes those to V again.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn mend_link(&self, node: Node) -> Result<()> {
        self.network.mend(node)?;
        self.cut.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Lets only so many bytes per second of what goes to a TCP port of node B through, and all else as
    /// ever. V's own packets are not in the way.
    ///
    /// # Errors
    ///
    /// When `tc` fails, for one because this has been done before.
    pub fn slow_path_to_b(&self, port: u16, bytes_per_second: u64) -> Result<()> {
        let device = self.network.first(Node::B).fabric_port();
        for command in [
            &format!("qdisc add dev {device} root handle 1: htb"),
            &format!(
                "class add dev {device} parent 1: classid 1:1 htb rate {bytes_per_second}bps burst 128k"
            ),
            &format!("qdisc add dev {device} parent 1:1 bfifo limit 512k"),
            &format!(
                "filter add dev {device} parent 1: protocol ip u32 match ip protocol 6 0xff \
                 match ip dport {port} 0xffff flowid 1:1"
            ),
        ] {
            let words: Vec<&str> = command.split_whitespace().collect();
            self.network.fabric.command("tc", &words)?;
        }
        Ok(())
    }

    /// Drops what matches an nftables expression on its way through the fabric, such as
    /// `tcp dport 7482` or `meta l4proto 4 numgen inc mod 100 == 0`.
    ///
    /// # Errors
    ///
    /// When `nft` does not take the expression.
    pub fn drop_in_fabric(&self, expression: &str) -> Result<()> {
        for command in [
            "add table inet lossy",
            "add chain inet lossy forward { type filter hook forward priority 0; }",
            &format!("add rule inet lossy forward {expression} counter drop"),
        ] {
            self.network.fabric.command("nft", &[command])?;
        }
        Ok(())
    }

    /// Ends all of [`Lab::drop_in_fabric`].
    ///
    /// # Errors
    ///
    /// When `nft` fails, for one because nothing was dropped.
    pub fn heal_fabric(&self) -> Result<()> {
        self.network
            .fabric
            .command("nft", &["delete table inet lossy"])
            .map(drop)
    }

    /// Sends one datagram from the client, again and again, until something comes back.
    fn ask(&self, to: SocketAddr, request: &[u8], deadline: Instant) -> Result<String> {
        self.network.client.run(|| {
            let any: SocketAddr = if to.is_ipv4() {
                ([0; 4], 0).into()
            } else {
                ([0_u16; 8], 0).into()
            };
            let socket = UdpSocket::bind(any).context("open a probe socket")?;
            socket
                .connect(to)
                .with_context(|| format!("connect to {to}"))?;
            socket
                .set_read_timeout(Some(PROBE_INTERVAL))
                .context("set a timeout")?;
            let mut buffer = [0; 2048];
            while Instant::now() < deadline {
                // Errors are ICMP reports of earlier probes: nobody there yet.
                if socket.send(request).is_ok()
                    && let Ok(length) = socket.recv(&mut buffer)
                {
                    return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
            }
            bail!("{to} did not answer in time")
        })?
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.belongings.remove();
        self.belongings.forget();
    }
}
