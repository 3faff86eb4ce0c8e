//! Two nodes that translate, between a client and a server.
//!
//! ```text
//!              left   (10.96.0.10:80 -> 10.244.0.5:8080)
//!   client <                                              > server
//!              right  (the same, and strict about states)
//! ```
//!
//! 192.0.2.9 and fd00:2::9 are the client, 10.244.0.5 and fd00:244::5 the server; each has one device towards
//! each node, and both send by the same node.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use katamaran::conntrack::{Entry, Family, Table};

use crate::support::{Net, PATIENCE};

/// How long nothing may come back before a connection counts as broken.
pub(crate) const SILENCE: Duration = Duration::from_millis(1500);

/// What a service and a firewall that knows connections have on every node.
const RULES: &str = "\
table inet node {
    chain translate {
        type nat hook prerouting priority dstnat ;
        ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.244.0.5:8080
        ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.0.5:5353
        ip6 daddr fd00:96::10 tcp dport 80 dnat ip6 to [fd00:244::5]:8080
    }
    chain outside {
        type nat hook postrouting priority srcnat ;
        ip saddr 10.244.0.5 tcp dport 443 snat ip to 203.0.113.7:20000-20100
    }
    chain forward {
        type filter hook forward priority filter ; policy drop ;
        ct state invalid drop
        ct state established,related accept
        ct state new ct mark set 0x4000 accept
    }
}";

pub(crate) struct Stage {
    pub(crate) client: Net,
    pub(crate) left: Net,
    pub(crate) right: Net,
    pub(crate) server: Net,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let stage = Self {
            client: Net::new(),
            left: Net::new(),
            right: Net::new(),
            server: Net::new(),
        };
        stage.client.ip("addr add 192.0.2.9/32 dev lo");
        stage.client.ip("-6 addr add fd00:2::9/128 dev lo nodad");
        stage.server.ip("addr add 10.244.0.5/32 dev lo");
        stage.server.ip("-6 addr add fd00:244::5/128 dev lo nodad");
        for (node, name, number) in [(&stage.left, "left", 1), (&stage.right, "right", 2)] {
            for (end, to, net) in [
                (&stage.client, "c", number),
                (&stage.server, "s", number + 10),
            ] {
                end.ip(&format!(
                    "link add {name} type veth peer name {to} netns {}",
                    node.path()
                ));
                for (side, device, host) in [(end, name, 1), (node, to, 2)] {
                    side.ip(&format!("addr add 10.0.{net}.{host}/24 dev {device}"));
                    side.ip(&format!(
                        "-6 addr add fd00:10:{net}::{host}/64 dev {device} nodad"
                    ));
                    side.ip(&format!("link set {device} up"));
                }
            }
            node.ip(&format!("route add 192.0.2.9 via 10.0.{number}.1"));
            node.ip(&format!("route add 10.244.0.5 via 10.0.1{number}.1"));
            node.ip(&format!("-6 route add fd00:2::9 via fd00:10:{number}::1"));
            node.ip(&format!(
                "-6 route add fd00:244::5 via fd00:10:1{number}::1"
            ));
            node.sysctl("ipv4/ip_forward", "1");
            node.sysctl("ipv6/conf/all/forwarding", "1");
            node.nft(RULES);
        }
        // This node takes no connection on that it has not seen from the start.
        stage.right.sysctl("netfilter/nf_conntrack_tcp_loose", "0");
        stage.go(1);
        stage
    }

    /// Both ends send by this node from now on.
    pub(crate) fn go(&self, number: u8) {
        self.client_sends_by(number);
        self.server.ip(&format!(
            "route replace 192.0.2.9 via 10.0.1{number}.2 src 10.244.0.5"
        ));
        self.server.ip(&format!(
            "-6 route replace fd00:2::9 via fd00:10:1{number}::2"
        ));
    }

    /// The client sends by this node from now on.
    pub(crate) fn client_sends_by(&self, number: u8) {
        for address in ["10.96.0.10", "203.0.113.7"] {
            self.client.ip(&format!(
                "route replace {address} via 10.0.{number}.2 src 192.0.2.9"
            ));
        }
        self.client.ip(&format!(
            "-6 route replace fd00:96::10 via fd00:10:{number}::2 src fd00:2::9"
        ));
    }

    /// From the client through the service.
    pub(crate) fn connect(&self, listen: &str, target: &str) -> Connection {
        Connection::open(&self.client, target, &self.server, listen)
    }
}

pub(crate) struct Connection {
    pub(crate) near: TcpStream,
    pub(crate) far: TcpStream,
}

impl Connection {
    pub(crate) fn open(from: &Net, target: &str, to: &Net, listen: &str) -> Self {
        let listener = to.netns.run(|| TcpListener::bind(listen).unwrap()).unwrap();
        let target = target.parse().unwrap();
        let near = from
            .netns
            .run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap())
            .unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(SILENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        Self { near, far }
    }

    /// Waits as long as it takes to send something again.
    pub(crate) fn be_patient(&self) {
        for stream in [&self.near, &self.far] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
    }

    /// A message there, and one back.
    pub(crate) fn works(&mut self) -> bool {
        let mut byte = [0];
        let mut turn = |from: bool| {
            let (a, b) = match from {
                true => (&mut self.near, &mut self.far),
                false => (&mut self.far, &mut self.near),
            };
            a.write_all(&[7]).and_then(|()| b.read_exact(&mut byte))
        };
        turn(true).and_then(|()| turn(false)).is_ok()
    }

    /// The same, and the server speaks first: as a VM does that had something to say when it was stopped.
    pub(crate) fn works_backwards(&mut self) -> bool {
        std::mem::swap(&mut self.near, &mut self.far);
        let works = self.works();
        std::mem::swap(&mut self.near, &mut self.far);
        works
    }
}

pub(crate) fn table(net: &Net) -> Table {
    net.netns.run(|| Table::open().unwrap()).unwrap()
}

pub(crate) fn entries(net: &Net) -> Vec<Entry> {
    table(net).list(Family::Both).unwrap()
}
