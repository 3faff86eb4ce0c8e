//! One connection as the kernel tracks it.
//!
//! ```text
//!   original   client:40000 -> 10.96.0.10:80       as its first packet came
//!   reply      10.244.0.5:8080 -> client:40000     as answers come
//! ```
//!
//! Where the reply is not the original turned round, the connection is translated: here its destination,
//! from a service's address to the VM's.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::message;

/// Longest name of a helper, in bytes (`NF_CT_HELPER_NAME_LEN` counts the 0 behind it).
const HELPER_NAME: usize = 15;

/// Bits of [`Entry::status`] (`IPS_*`).
pub mod status {
    /// Packets came both ways.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Not to be thrown out early when the table is full.
    pub const ASSURED: u32 = 1 << 2;
    /// It is in the table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// Its source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// Its destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
    /// Its timeout does not change.
    pub const FIXED_TIMEOUT: u32 = 1 << 10;
}

/// States of TCP (`TCP_CONNTRACK_*`).
pub mod tcp_state {
    /// The first packet came, and no answer.
    pub const SYN_SENT: u8 = 1;
    /// Open.
    pub const ESTABLISHED: u8 = 3;
    /// Closed by a reset.
    pub const CLOSE: u8 = 8;
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    pub transport: Transport,
    /// A zone of this direction alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
}

/// What tells connections between the same addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP, UDP, SCTP and the like.
    Ports { source: u16, destination: u16 },
    /// ICMP and ICMPv6.
    Icmp { id: u16, kind: u8, code: u8 },
    /// Any other protocol.
    None,
}

/// TCP's state; what the kernel knows of the windows can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// See [`tcp_state`].
    pub state: u8,
    /// Window scaling, by direction.
    pub scale: [u8; 2],
    /// `IP_CT_TCP_FLAG_*`, by direction.
    pub flags: [u8; 2],
}

/// SCTP's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sctp {
    pub state: u8,
    /// Verification tags, by direction.
    pub tags: [u32; 2],
}

/// How sequence numbers of one direction are shifted, because a helper changed the length of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceShift {
    pub position: u32,
    pub before: u32,
    pub after: u32,
}

/// What the kernel's SYN proxy has to remember.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynProxy {
    pub initial_sequence: u32,
    pub initial_timestamp: u32,
    pub timestamp_offset: u32,
}

/// An entry. It is also what travels between the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    /// Of both directions; 0 is the default.
    #[serde(default)]
    pub zone: u16,
    /// See [`status`].
    pub status: u32,
    /// Seconds until it is forgotten if nothing comes.
    pub timeout: u32,
    #[serde(default)]
    pub mark: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<[u8; 16]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sctp: Option<Sctp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<String>,
    /// By direction.
    #[serde(default)]
    pub shifts: [Option<SequenceShift>; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syn_proxy: Option<SynProxy>,
}

/// What identifies an entry in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    pub original: Tuple,
    #[serde(default)]
    pub zone: u16,
}

impl Transport {
    /// The other direction's. What kind of ICMP answers what, only the kernel's table of it says: `answer` is asked
    /// for it.
    fn turned(self, answer: Self) -> Self {
        match (self, answer) {
            (
                Self::Ports {
                    source,
                    destination,
                },
                _,
            ) => Self::Ports {
                source: destination,
                destination: source,
            },
            (Self::Icmp { id, .. }, Self::Icmp { kind, code, .. }) => Self::Icmp { id, kind, code },
            (other, _) => other,
        }
    }
}

impl Tuple {
    /// The same connection seen from its other end, where nothing is translated. `answer` is a tuple of that direction.
    fn turned(&self, answer: &Self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            transport: self.transport.turned(answer.transport),
            zone: answer.zone,
        }
    }
}

impl Entry {
    /// What identifies it.
    #[must_use]
    pub fn flow(&self) -> Flow {
        Flow {
            original: self.original,
            zone: self.zone,
        }
    }

    /// An address or port of it is changed on the way.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.status & (status::SRC_NAT | status::DST_NAT) != 0
    }

    /// Any of its addresses is one of these.
    #[must_use]
    pub fn concerns(&self, addresses: &[IpAddr]) -> bool {
        [&self.original, &self.reply]
            .iter()
            .any(|t| addresses.contains(&t.source) || addresses.contains(&t.destination))
    }

    /// What answers would look like if nothing were translated. The kernel wants this in order to set translation
    /// up.
    #[must_use]
    pub fn untranslated_reply(&self) -> Tuple {
        self.original.turned(&self.reply)
    }

    /// The connection as a node sees it that lies between this one and its responder: translated already. What
    /// this node does to the contents stays with it.
    #[must_use]
    pub fn behind_translation(&self) -> Self {
        Self {
            original: self.reply.turned(&self.original),
            status: self.status & !(status::SRC_NAT | status::DST_NAT),
            helper: None,
            shifts: [None; 2],
            syn_proxy: None,
            ..self.clone()
        }
    }

    /// A TCP connection of which the kernel refuses what is outside of the window that it knows of.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        let strict = |flags: [u8; 2]| flags.iter().any(|f| f & message::TCP_FLAG_BE_LIBERAL == 0);
        self.tcp.is_some_and(|tcp| strict(tcp.flags))
    }

    /// A TCP connection that nobody has answered yet.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        self.tcp.is_some_and(|tcp| tcp.state == tcp_state::SYN_SENT)
    }

    /// The helper, if any kernel can have one of that name: entries come from the other node, and say what they like.
    pub(super) fn possible_helper(&self) -> Option<&str> {
        self.helper
            .as_deref()
            .filter(|name| name.len() <= HELPER_NAME && !name.contains('\0'))
    }

    /// Whether another kernel, once told of the one, has to be told of the other. Time passes there, too.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        let told = |entry: &Self| {
            let mut entry = entry.clone();
            entry.timeout = 0;
            entry.status &= message::STATUS_CARRIED | status::SRC_NAT | status::DST_NAT;
            for flags in entry.tcp.iter_mut().flat_map(|tcp| &mut tcp.flags) {
                *flags &= message::TCP_FLAGS_CARRIED;
            }
            entry
        };
        told(self) != told(other)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn service() -> Entry {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let tcp = |source, sport, destination, dport| Tuple {
            source: ip(source),
            destination: ip(destination),
            protocol: 6,
            transport: Transport::Ports {
                source: sport,
                destination: dport,
            },
            zone: None,
        };
        Entry {
            original: tcp("192.0.2.9", 40000, "10.96.0.10", 80),
            reply: tcp("10.244.0.5", 8080, "192.0.2.9", 40000),
            zone: 0,
            status: status::CONFIRMED | status::SEEN_REPLY | status::ASSURED | status::DST_NAT,
            timeout: 431_999,
            mark: 0x4000,
            labels: None,
            tcp: Some(Tcp {
                state: 3,
                scale: [7, 9],
                flags: [0x23, 0x23],
            }),
            sctp: None,
            helper: None,
            shifts: [None; 2],
            syn_proxy: None,
        }
    }

    #[test]
    fn behind_the_translation_the_vm_talks_to_what_it_sees() {
        let entry = service();
        let seen = entry.behind_translation();
        assert!(!seen.is_translated());
        assert_eq!(seen.reply, entry.reply);
        assert_eq!(seen.original.source, entry.reply.destination);
        assert_eq!(seen.original.destination, entry.reply.source);
        assert_eq!(
            seen.original.transport,
            Transport::Ports {
                source: 40000,
                destination: 8080
            }
        );
        assert_eq!(seen.untranslated_reply(), seen.reply);
        assert_eq!(seen.tcp, entry.tcp);
    }

    #[test]
    fn an_echo_keeps_its_kind_in_each_direction() {
        let icmp = |kind| Transport::Icmp {
            id: 77,
            kind,
            code: 0,
        };
        let mut entry = service();
        entry.original.transport = icmp(8);
        entry.reply.transport = icmp(0);
        assert_eq!(entry.untranslated_reply().transport, icmp(0));
        assert_eq!(entry.behind_translation().original.transport, icmp(8));
    }

    #[test]
    fn time_passes_without_making_a_difference() {
        let entry = service();
        let mut later = entry.clone();
        later.timeout -= 60;
        assert!(!later.differs(&entry));
        // Nor does it matter what this kernel knows of the windows, or how strict it is.
        later.tcp.as_mut().unwrap().flags = [0x2b, 0x0b];
        assert!(!later.differs(&entry));
        later.mark = 1;
        assert!(later.differs(&entry));
    }

    #[test]
    fn an_entry_survives_the_wire() {
        let mut entry = service();
        entry.labels = Some([7; 16]);
        entry.helper = Some("ftp".into());
        entry.shifts[1] = Some(SequenceShift {
            position: 1,
            before: 2,
            after: u32::MAX,
        });
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }
}
