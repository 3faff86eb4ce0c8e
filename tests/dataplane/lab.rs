//! Two nodes, a client, a router between them, and V.
//!
//! ```text
//! client 10.80.0.2 -- fabric -- 10.81.0.2 nodeA [vtap] ~pump~ V 10.90.0.5
//!                        \----- 10.82.0.2 nodeB [vtap] ~pump~ (the same V)
//! ```
//!
//! V is routed, one address to a tap, as Calico does it. Addresses of IPv6 are `fd80::2` and so on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use katamaran::ebpf::{
    AttachPreference, DestinationDataplane, DestinationSpec, Encap, Ingress, Outer,
    SourceDataplane, SourceSpec, TapLocation, sweep,
};
use katamaran::session_id::SessionId;

use crate::netns::Netns;
use crate::pump::Pump;
use crate::tap;

pub(crate) const V4: &str = "10.90.0.5";
pub(crate) const V6: &str = "fd90::5";
pub(crate) const VM_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x05];
const VM_MAC_TEXT: &str = "02:00:00:00:00:05";
const GATEWAY_MAC: &str = "02:00:00:00:00:01";

/// Room for the outer headers on the node network.
pub(crate) const ROOMY: u32 = 1600;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) tap: File,
    number: u8,
}

#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) client: Netns,
    pub(crate) fabric: Netns,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) vm: Netns,
    pub(crate) guest: File,
    pub(crate) session: SessionId,
    underlay_mtu: u32,
    outer: Outer,
}

impl Lab {
    pub(crate) fn new(underlay_mtu: u32) -> Self {
        let fabric = Netns::new("fabric");
        let client = Netns::new("client");
        forwarding(&fabric);
        connect(&fabric, &client, 80, 1500);
        let a = Node::new(&fabric, "a", 81, underlay_mtu);
        let b = Node::new(&fabric, "b", 82, underlay_mtu);
        fabric.ip(&format!("route add {V4}/32 via 10.81.0.2"));
        fabric.ip(&format!("-6 route add {V6}/128 via fd81::2"));

        let vm = Netns::new("vm");
        let guest = tap::open(&vm, "eth0", VM_MAC_TEXT);
        vm.ip(&format!("addr add {V4}/32 dev eth0"));
        vm.ip(&format!("-6 addr add {V6}/128 dev eth0 nodad"));
        vm.ip("route add 169.254.1.1 dev eth0 scope link");
        vm.ip("route add default via 169.254.1.1 dev eth0");
        vm.ip("-6 route add default via fe80::1 dev eth0");
        for gateway in ["169.254.1.1", "fe80::1"] {
            vm.ip(&format!(
                "neigh add {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent"
            ));
        }
        Self {
            client,
            fabric,
            a,
            b,
            vm,
            guest,
            session: unique_session(),
            underlay_mtu,
            outer: Outer::Ip,
        }
    }

    /// The same with other headers around V's packets.
    pub(crate) fn through(mut self, outer: Outer) -> Self {
        self.outer = outer;
        self
    }

    /// Has V run behind a node.
    pub(crate) fn pump(&self, node: &Node) -> Pump {
        Pump::start(&node.tap, &self.guest)
    }

    /// All pins of this session.
    pub(crate) fn pins(&self) -> BTreeSet<PathBuf> {
        let session = PathBuf::from(format!("/sys/fs/bpf/katamaran/{}", self.session));
        fs::read_dir(session)
            .into_iter()
            .flatten()
            .flat_map(|role| fs::read_dir(role.unwrap().path()).unwrap())
            .map(|pin| pin.unwrap().path())
            .collect()
    }

    /// Puts a frame into V's device, behind an empty virtio header.
    pub(crate) fn give_to_guest(&self, frame: &[u8]) {
        let with_header = [&[0; 10], frame].concat();
        assert_eq!(
            (&self.guest).write(&with_header).unwrap(),
            with_header.len()
        );
    }

    /// A VXLAN device on each node, to the other; their indices.
    pub(crate) fn vxlan(&self) -> (u32, u32) {
        let make = |from: &Node, to: &Node| {
            let (local, remote) = (&from.addresses()[0], &to.addresses()[0]);
            from.netns.ip(&format!(
                "link add vx0 type vxlan id 77 dstport 4789 local {local} remote {remote} dev up0"
            ));
            from.netns.ip("link set vx0 up");
            from.netns.ifindex("vx0")
        };
        (make(&self.a, &self.b), make(&self.b, &self.a))
    }

    pub(crate) fn vm_addresses(&self) -> Vec<IpAddr> {
        vec![V4.parse().unwrap(), V6.parse().unwrap()]
    }

    pub(crate) fn source_spec(&self) -> SourceSpec {
        SourceSpec {
            session: self.session,
            hook_ifindex: self.a.tap_location().ifindex,
            pod: None,
            detour: None,
            netns_inum: self.a.netns.inum(),
            vm_addresses: self.vm_addresses(),
            vm_mac: VM_MAC,
            encap: Encap::Ip {
                outer: self.outer,
                underlay_ifindex: self.a.netns.ifindex("up0"),
                local: self.a.addresses(),
                remote: self.b.addresses(),
                path_mtu: self.underlay_mtu,
                oversize_ifindex: None,
            },
            tap: self.a.tap_location(),
            attach: AttachPreference::Auto,
        }
    }

    pub(crate) fn destination_spec(&self) -> DestinationSpec {
        DestinationSpec {
            session: self.session,
            ingress: vec![Ingress::Ip {
                outer: self.outer,
                underlay_ifindex: self.b.netns.ifindex("up0"),
                local: self.b.addresses(),
                remote: self.a.addresses(),
            }],
            vm_addresses: self.vm_addresses(),
            vm_mac: VM_MAC,
            deliver_ifindex: self.b.tap_location().ifindex,
            pod: None,
            netns_inum: self.b.netns.inum(),
            tap: self.b.tap_location(),
            attach: AttachPreference::Auto,
        }
    }

    pub(crate) fn arm_source(&self, spec: &SourceSpec) -> SourceDataplane {
        let armed = self.a.netns.run(|| SourceDataplane::arm(spec));
        armed.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) fn arm_destination(&self, spec: &DestinationSpec) -> DestinationDataplane {
        let armed = self.b.netns.run(|| DestinationDataplane::arm(spec));
        armed.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Undoes both ends and looks for what they may have left.
    #[track_caller]
    pub(crate) fn disarm(&self, source: SourceDataplane, destination: DestinationDataplane) {
        self.a.netns.run(|| source.remove()).unwrap();
        self.b.netns.run(|| destination.remove()).unwrap();
        let pins = format!("/sys/fs/bpf/katamaran/{}", self.session);
        assert!(!std::path::Path::new(&pins).exists(), "{pins} is left");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // After a panic the data planes were only dropped: their pins are here, and nobody's.
        if thread::panicking() {
            let session = self.session;
            let swept = self.a.netns.run(|| sweep(|found| found == session));
            println!("swept after the panic: {swept:?}");
        }
    }
}

impl Node {
    fn new(fabric: &Netns, label: &str, number: u8, mtu: u32) -> Self {
        let netns = Netns::new(label);
        forwarding(&netns);
        connect(fabric, &netns, number, mtu);
        let tap = tap::open(&netns, "vtap", GATEWAY_MAC);
        netns.ip("-6 addr add fe80::1/64 dev vtap nodad");
        netns.ip(&format!("route add {V4}/32 dev vtap"));
        netns.ip(&format!("-6 route add {V6}/128 dev vtap"));
        Self { netns, tap, number }
    }

    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let number = self.number;
        vec![
            format!("10.{number}.0.2").parse().unwrap(),
            format!("fd{number}::2").parse().unwrap(),
        ]
    }

    /// Empties the tap's ring of what the kernel itself sent when the tap came up. Not while V runs behind it.
    pub(crate) fn discard_waiting(&self) {
        let mut frame = vec![0; 1 << 17];
        while (&self.tap).read(&mut frame).is_ok() {}
    }

    pub(crate) fn tap_location(&self) -> TapLocation {
        TapLocation {
            netns_inum: self.netns.inum(),
            ifindex: self.netns.ifindex("vtap"),
        }
    }
}

fn forwarding(netns: &Netns) {
    netns.sysctl("ipv4/ip_forward", "1");
    netns.sysctl("ipv6/conf/all/forwarding", "1");
    netns.sysctl("ipv4/conf/all/rp_filter", "0");
    netns.sysctl("ipv4/conf/default/rp_filter", "0");
}

/// A link from the fabric to a namespace, where it is called `up0` and the default route.
fn connect(fabric: &Netns, netns: &Netns, number: u8, mtu: u32) {
    let device = format!("to{number}");
    let inum = netns.inum();
    fabric.ip(&format!(
        "link add {device} mtu {mtu} type veth peer name t{inum} mtu {mtu}"
    ));
    let moved = netns.name();
    fabric.ip(&format!("link set t{inum} netns {moved} name up0"));
    for (end, name, address) in [(fabric, device.as_str(), 1), (netns, "up0", 2)] {
        end.ip(&format!("addr add 10.{number}.0.{address}/24 dev {name}"));
        end.ip(&format!(
            "-6 addr add fd{number}::{address}/64 dev {name} nodad"
        ));
        end.ip(&format!("link set {name} up"));
    }
    netns.ip(&format!("route add default via 10.{number}.0.1"));
    netns.ip(&format!("-6 route add default via fd{number}::1"));
}

fn unique_session() -> SessionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    SessionId(u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}
