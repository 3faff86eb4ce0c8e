//! Entries as netlink messages, and back.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | netlink header: length u32, type u16, flags u16, sequence u32, port u32, in the machine's order |
//! | 4 | address family u8, version u8 (0), resource u16 (0) |
//! | the rest | attributes, values in network order |
//!
//! The numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attribute::{Attributes, Writer};
use super::entry::{
    self, Entry, Flow, Sctp, SequenceShift, SynProxy, Tcp, Transport, Tuple, status,
};

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// What a message asks for; also the type of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    New = 0x100,
    Get = 0x101,
    Delete = 0x102,
    Stats = 0x105,
}

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_HELP: u16 = 5;
const CTA_NAT_SRC: u16 = 6;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_NAT_DST: u16 = 13;
const CTA_SEQ_ADJ: [u16; 2] = [15, 16];
const CTA_ZONE: u16 = 18;
const CTA_LABELS: u16 = 22;
const CTA_SYNPROXY: u16 = 24;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4: [u16; 2] = [1, 2];
const CTA_IP_V6: [u16; 2] = [3, 4];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_PORTS: [u16; 2] = [2, 3];
/// Identifier, type and code, of ICMP and of ICMPv6.
const CTA_PROTO_ICMP: [u16; 3] = [4, 5, 6];
const CTA_PROTO_ICMPV6: [u16; 3] = [7, 8, 9];
const IPPROTO_ICMPV6: u8 = 58;

const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
const CTA_PROTOINFO_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_SCALE: [u16; 2] = [2, 3];
const CTA_PROTOINFO_TCP_FLAGS: [u16; 2] = [4, 5];
const CTA_PROTOINFO_SCTP_TAGS: [u16; 2] = [2, 3];

const CTA_HELP_NAME: u16 = 1;
const CTA_NAT_V4: [u16; 2] = [1, 2];
const CTA_NAT_V6: [u16; 2] = [4, 5];
const CTA_NAT_PROTO: u16 = 3;
const CTA_PROTONAT_PORTS: [u16; 2] = [1, 2];
/// Position, offset before, offset after.
const CTA_SEQADJ: [u16; 3] = [1, 2, 3];
/// Initial sequence number, initial timestamp, offset of timestamps.
const CTA_SYNPROXY_FIELDS: [u16; 3] = [1, 2, 3];

/// `IP_CT_TCP_FLAG_*`: an end scales its window, takes selective acknowledgements, closed first.
pub(super) const TCP_FLAGS_CARRIED: u8 = 0x01 | 0x02 | 0x04;
/// Segments outside of the window are no reason to call the connection invalid. The kernel tells nobody what it
/// knows of the windows, so another one has to begin in the middle, while packets may still overtake each other on two
/// paths.
pub(super) const TCP_FLAG_BE_LIBERAL: u8 = 0x08;

/// Seconds that a connection is remembered that is assumed to be open, if it is not: the kernel's own limit for data
/// that nobody acknowledges.
const ASSUMED_OPEN: u32 = 300;

/// The bits of a status that another kernel is told. What concerns translation and shifts it sets itself.
pub(super) const STATUS_CARRIED: u32 =
    status::SEEN_REPLY | status::ASSURED | status::CONFIRMED | status::FIXED_TIMEOUT;

/// A message being written.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: Kind, flags: u16, family: u8, attributes: &Writer) -> Self {
        let mut bytes = Vec::with_capacity(HEADER + FAMILY_HEADER + attributes.bytes().len());
        let length = u32::try_from(bytes.capacity())
            .expect("an entry is a few hundred bytes, a message may have 4 GiB");
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&(kind as u16).to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&[family, 0, 0, 0]);
        bytes.extend_from_slice(attributes.bytes());
        Self { bytes }
    }

    /// The bytes, which have a length that is a multiple of 4 already.
    pub(super) fn numbered(mut self, sequence: u32) -> Vec<u8> {
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    /// About everything of an address family (0: of all).
    ///
    /// Filters by address are for user space: up to at least Linux 6.18 the kernel's own leaves out exactly
    /// the IPv6 addresses that were asked for.
    pub(super) fn of_all(kind: Kind, flags: u16, family: u8) -> Self {
        Self::new(kind, flags, family, &Writer::default())
    }

    /// The entry of which this is the original direction.
    pub(super) fn about(kind: Kind, flags: u16, flow: &Flow) -> Self {
        let mut attributes = Writer::default();
        put_tuple(&mut attributes, CTA_TUPLE_ORIG, &flow.original);
        put_zone(&mut attributes, flow.zone);
        Self::new(kind, flags, family(flow.original.source), &attributes)
    }

    /// A new entry.
    pub(super) fn create(flags: u16, entry: &Entry, helper: Option<&str>) -> Self {
        let mut attributes = Writer::default();
        put_tuple(&mut attributes, CTA_TUPLE_ORIG, &entry.original);
        // N.B. The kernel applies the translation to the reply that it is given: it must not be translated yet.
        let reply = match entry.is_translated() {
            true => entry.untranslated_reply(),
            false => entry.reply,
        };
        put_tuple(&mut attributes, CTA_TUPLE_REPLY, &reply);
        put_translation(&mut attributes, entry);
        put_zone(&mut attributes, entry.zone);
        put_u32(&mut attributes, CTA_STATUS, entry.status & STATUS_CARRIED);
        put_state(&mut attributes, entry);
        if let Some(labels) = &entry.labels {
            attributes.put(CTA_LABELS, labels);
        }
        if let Some(name) = helper {
            attributes.nest(CTA_HELP, |a| {
                a.put(CTA_HELP_NAME, &[name.as_bytes(), &[0]].concat())
            });
        }
        Self::new(Kind::New, flags, family(entry.original.source), &attributes)
    }

    /// Brings an entry that is there up to date. The kernel takes no change of translation, and no status that
    /// lacks a bit that was set.
    pub(super) fn update(flags: u16, there: &Entry, wanted: &Entry) -> Self {
        let mut attributes = Writer::default();
        put_tuple(&mut attributes, CTA_TUPLE_ORIG, &there.original);
        put_zone(&mut attributes, there.zone);
        let status = there.status | wanted.status & (status::SEEN_REPLY | status::ASSURED);
        put_u32(&mut attributes, CTA_STATUS, status);
        put_state(&mut attributes, wanted);
        Self::new(Kind::New, flags, family(there.original.source), &attributes)
    }
}

impl Message {
    /// Lets a TCP connection leave the window that this kernel knows of, or no longer.
    pub(super) fn liberal(flags: u16, flow: &Flow, on: bool) -> Self {
        let mut attributes = Writer::default();
        put_tuple(&mut attributes, CTA_TUPLE_ORIG, &flow.original);
        put_zone(&mut attributes, flow.zone);
        let value = [
            if on { TCP_FLAG_BE_LIBERAL } else { 0 },
            TCP_FLAG_BE_LIBERAL,
        ];
        attributes.nest(CTA_PROTOINFO, |a| {
            a.nest(CTA_PROTOINFO_TCP, |a| {
                for kind in CTA_PROTOINFO_TCP_FLAGS {
                    a.put(kind, &value);
                }
            });
        });
        Self::new(Kind::New, flags, family(flow.original.source), &attributes)
    }

    /// Takes an opening TCP connection for open: its other way is not seen here.
    pub(super) fn assume_open(flags: u16, entry: &Entry) -> Self {
        let open = Entry {
            status: entry.status | status::SEEN_REPLY,
            timeout: ASSUMED_OPEN,
            tcp: entry.tcp.map(|tcp| Tcp {
                state: entry::tcp_state::ESTABLISHED,
                ..tcp
            }),
            ..entry.clone()
        };
        Self::update(flags, &open, &open)
    }
}

/// What changes in the life of a connection.
fn put_state(attributes: &mut Writer, entry: &Entry) {
    put_u32(attributes, CTA_TIMEOUT, entry.timeout);
    put_u32(attributes, CTA_MARK, entry.mark);
    if let Some(tcp) = &entry.tcp {
        attributes.nest(CTA_PROTOINFO, |a| {
            a.nest(CTA_PROTOINFO_TCP, |a| put_tcp(a, tcp))
        });
    }
    if let Some(sctp) = &entry.sctp {
        attributes.nest(CTA_PROTOINFO, |a| {
            a.nest(CTA_PROTOINFO_SCTP, |a| {
                a.put(CTA_PROTOINFO_STATE, &[sctp.state]);
                for (kind, tag) in CTA_PROTOINFO_SCTP_TAGS.into_iter().zip(sctp.tags) {
                    put_u32(a, kind, tag);
                }
            });
        });
    }
    for (kind, shift) in CTA_SEQ_ADJ.into_iter().zip(entry.shifts) {
        if let Some(SequenceShift {
            position,
            before,
            after,
        }) = shift
        {
            attributes.nest(kind, |a| {
                put_three(a, CTA_SEQADJ, [position, before, after])
            });
        }
    }
    if let Some(SynProxy {
        initial_sequence,
        initial_timestamp,
        timestamp_offset,
    }) = entry.syn_proxy
    {
        let fields = [initial_sequence, initial_timestamp, timestamp_offset];
        attributes.nest(CTA_SYNPROXY, |a| put_three(a, CTA_SYNPROXY_FIELDS, fields));
    }
}

fn put_tcp(attributes: &mut Writer, tcp: &Tcp) {
    attributes.put(CTA_PROTOINFO_STATE, &[tcp.state]);
    for direction in [0, 1] {
        attributes.put(CTA_PROTOINFO_TCP_SCALE[direction], &[tcp.scale[direction]]);
        // Flags that speak of what the kernel remembers of the windows must go: one that says "the highest
        // acknowledgement is known" makes it compare with a zero that nobody acknowledged.
        let flags = tcp.flags[direction] & TCP_FLAGS_CARRIED | TCP_FLAG_BE_LIBERAL;
        attributes.put(CTA_PROTOINFO_TCP_FLAGS[direction], &[flags, 0xff]);
    }
}

/// The translation is in the reply: its source is the translated destination, its destination the translated
/// source.
fn put_translation(attributes: &mut Writer, entry: &Entry) {
    let (sources, destinations) = match entry.reply.transport {
        Transport::Ports {
            source,
            destination,
        } => (Some(destination), Some(source)),
        // An identifier belongs to the source.
        Transport::Icmp { id, .. } => (Some(id), None),
        Transport::None => (None, None),
    };
    if entry.status & status::DST_NAT != 0 {
        put_range(attributes, CTA_NAT_DST, entry.reply.source, destinations);
    }
    if entry.status & status::SRC_NAT != 0 {
        put_range(attributes, CTA_NAT_SRC, entry.reply.destination, sources);
    }
}

/// A range of one address and one port.
fn put_range(attributes: &mut Writer, kind: u16, address: IpAddr, port: Option<u16>) {
    attributes.nest(kind, |a| {
        for limit in [0, 1] {
            match address {
                IpAddr::V4(address) => a.put(CTA_NAT_V4[limit], &address.octets()),
                IpAddr::V6(address) => a.put(CTA_NAT_V6[limit], &address.octets()),
            }
        }
        if let Some(port) = port {
            a.nest(CTA_NAT_PROTO, |a| {
                for kind in CTA_PROTONAT_PORTS {
                    a.put(kind, &port.to_be_bytes());
                }
            });
        }
    });
}

fn put_tuple(attributes: &mut Writer, kind: u16, tuple: &Tuple) {
    attributes.nest(kind, |a| {
        a.nest(CTA_TUPLE_IP, |a| {
            for (end, address) in [tuple.source, tuple.destination].into_iter().enumerate() {
                match address {
                    IpAddr::V4(address) => a.put(CTA_IP_V4[end], &address.octets()),
                    IpAddr::V6(address) => a.put(CTA_IP_V6[end], &address.octets()),
                }
            }
        });
        a.nest(CTA_TUPLE_PROTO, |a| {
            a.put(CTA_PROTO_NUM, &[tuple.protocol]);
            match tuple.transport {
                Transport::Ports {
                    source,
                    destination,
                } => {
                    a.put(CTA_PROTO_PORTS[0], &source.to_be_bytes());
                    a.put(CTA_PROTO_PORTS[1], &destination.to_be_bytes());
                }
                Transport::Icmp { id, kind, code } => {
                    let kinds = icmp_kinds(tuple.protocol);
                    a.put(kinds[0], &id.to_be_bytes());
                    a.put(kinds[1], &[kind]);
                    a.put(kinds[2], &[code]);
                }
                Transport::None => {}
            }
        });
        if let Some(zone) = tuple.zone {
            a.put(CTA_TUPLE_ZONE, &zone.to_be_bytes());
        }
    });
}

fn icmp_kinds(protocol: u8) -> [u16; 3] {
    match protocol {
        IPPROTO_ICMPV6 => CTA_PROTO_ICMPV6,
        _ => CTA_PROTO_ICMP,
    }
}

fn put_zone(attributes: &mut Writer, zone: u16) {
    if zone != 0 {
        attributes.put(CTA_ZONE, &zone.to_be_bytes());
    }
}

fn put_u32(attributes: &mut Writer, kind: u16, value: u32) {
    attributes.put(kind, &value.to_be_bytes());
}

fn put_three(attributes: &mut Writer, kinds: [u16; 3], values: [u32; 3]) {
    for (kind, value) in kinds.into_iter().zip(values) {
        put_u32(attributes, kind, value);
    }
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => nix::libc::AF_INET,
        IpAddr::V6(_) => nix::libc::AF_INET6,
    };
    u8::try_from(family).expect("AF_INET is 2, AF_INET6 is 10")
}

/// What a message's payload says.
pub(super) fn attributes(payload: &[u8]) -> Option<Attributes<'_>> {
    payload.get(FAMILY_HEADER..).map(Attributes)
}

/// Whether an address of the entry in a message's payload is one of these: in a fraction of the time that the whole
/// entry takes.
pub(super) fn concerns(payload: &[u8], addresses: &[IpAddr]) -> bool {
    let Some(attributes) = attributes(payload) else {
        return false;
    };
    [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY]
        .into_iter()
        .filter_map(|kind| attributes.nested(kind)?.nested(CTA_TUPLE_IP))
        .flat_map(|ip| [0, 1].map(|end| parse_address(ip, end)))
        .flatten()
        .any(|address| addresses.contains(&address))
}

/// The entry in a message's payload; `None` if it lacks what every entry has.
pub(super) fn parse(payload: &[u8]) -> Option<Entry> {
    let attributes = attributes(payload)?;
    let info = attributes.nested(CTA_PROTOINFO);
    Some(Entry {
        original: parse_tuple(attributes.nested(CTA_TUPLE_ORIG)?)?,
        reply: parse_tuple(attributes.nested(CTA_TUPLE_REPLY)?)?,
        zone: attributes.be16(CTA_ZONE).unwrap_or(0),
        status: attributes.be32(CTA_STATUS)?,
        // Entries that are offloaded to hardware or a fast path have none.
        timeout: attributes.be32(CTA_TIMEOUT).unwrap_or(0),
        mark: attributes.be32(CTA_MARK).unwrap_or(0),
        labels: attributes.bytes(CTA_LABELS),
        tcp: info
            .and_then(|i| i.nested(CTA_PROTOINFO_TCP))
            .and_then(parse_tcp),
        sctp: info
            .and_then(|i| i.nested(CTA_PROTOINFO_SCTP))
            .and_then(|a| {
                Some(Sctp {
                    state: a.u8(CTA_PROTOINFO_STATE)?,
                    tags: [
                        a.be32(CTA_PROTOINFO_SCTP_TAGS[0])?,
                        a.be32(CTA_PROTOINFO_SCTP_TAGS[1])?,
                    ],
                })
            }),
        helper: attributes.nested(CTA_HELP).and_then(|help| {
            let name = help.get(CTA_HELP_NAME)?;
            let name = name.split(|byte| *byte == 0).next()?;
            String::from_utf8(name.to_vec()).ok()
        }),
        shifts: CTA_SEQ_ADJ.map(|kind| {
            let [position, before, after] = three(attributes.nested(kind)?, CTA_SEQADJ)?;
            // The kernel shows these of every connection that could be shifted.
            (before != 0 || after != 0).then_some(SequenceShift {
                position,
                before,
                after,
            })
        }),
        syn_proxy: attributes.nested(CTA_SYNPROXY).and_then(|a| {
            let [initial_sequence, initial_timestamp, timestamp_offset] =
                three(a, CTA_SYNPROXY_FIELDS)?;
            let syn_proxy = SynProxy {
                initial_sequence,
                initial_timestamp,
                timestamp_offset,
            };
            // The kernel shows one of all zeroes of every connection that was added like this.
            (syn_proxy != SynProxy::default()).then_some(syn_proxy)
        }),
    })
}

fn three(attributes: Attributes<'_>, kinds: [u16; 3]) -> Option<[u32; 3]> {
    let [a, b, c] = kinds.map(|kind| attributes.be32(kind));
    Some([a?, b?, c?])
}

fn parse_tcp(attributes: Attributes<'_>) -> Option<Tcp> {
    let flags = CTA_PROTOINFO_TCP_FLAGS.map(|kind| attributes.bytes::<2>(kind));
    let scale = CTA_PROTOINFO_TCP_SCALE.map(|kind| attributes.u8(kind).unwrap_or(0));
    Some(Tcp {
        state: attributes.u8(CTA_PROTOINFO_STATE)?,
        scale,
        flags: flags.map(|flags| flags.map_or(0, |[flags, _mask]| flags)),
    })
}

fn parse_address(ip: Attributes<'_>, end: usize) -> Option<IpAddr> {
    let v4 = ip
        .bytes(CTA_IP_V4[end])
        .map(|octets: [u8; 4]| Ipv4Addr::from(octets).into());
    v4.or_else(|| {
        ip.bytes(CTA_IP_V6[end])
            .map(|octets: [u8; 16]| Ipv6Addr::from(octets).into())
    })
}

fn parse_tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let ip = attributes.nested(CTA_TUPLE_IP)?;
    let address = |end| parse_address(ip, end);
    let proto = attributes.nested(CTA_TUPLE_PROTO)?;
    let protocol = proto.u8(CTA_PROTO_NUM)?;
    let [id, kind, code] = icmp_kinds(protocol);
    let transport = match (
        proto.be16(CTA_PROTO_PORTS[0]),
        proto.be16(CTA_PROTO_PORTS[1]),
    ) {
        (Some(source), Some(destination)) => Transport::Ports {
            source,
            destination,
        },
        _ => match (proto.be16(id), proto.u8(kind), proto.u8(code)) {
            (Some(id), Some(kind), Some(code)) => Transport::Icmp { id, kind, code },
            _ => Transport::None,
        },
    };
    Some(Tuple {
        source: address(0)?,
        destination: address(1)?,
        protocol,
        transport,
        zone: attributes.be16(CTA_TUPLE_ZONE),
    })
}

#[cfg(test)]
mod tests;
