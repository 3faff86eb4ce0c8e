//! Every drop of V's packets, one by one, as it happens.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::RawTracePoint;
use aya::programs::raw_trace_point::RawTracePointLinkId;
use katamaran_common::layout::Config;
use katamaran_common::names;
use katamaran_common::packet::Address;
use katamaran_common::trace::{DropEvent, Lost, NAME_BYTES, TraceOffsets};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::btf::{Btf, BtfError};
use super::drops::{DropMap, PacketDrop};
use super::error::EbpfError;
use super::object;
use super::plane::{write_addresses, write_config};
use super::witness::{DropReasons, Witness, WitnessMissing};

/// Bytes of the ring: some 6,000 events.
const RING_BYTES: u32 = 1 << 20;

/// One packet that the kernel has dropped (or one super-packet, of several).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedPacket {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Where and why, without the symbol.
    pub drop: PacketDrop,
    /// Source of V's packet (without any tunnel's header).
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Number of the L4 protocol.
    pub protocol: u8,
    /// Source and destination port; `None` for what has none, and for later fragments.
    pub ports: Option<(u16, u16)>,
    /// TCP's flags, as they stand in its header (without those for ECN).
    pub tcp_flags: u8,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// Length of the IP packet, bytes.
    pub length: u32,
    /// The device's name, where the packet had a device.
    pub device: Option<String>,
    /// Kind and handle (major number) of the queueing discipline that the device had for it.
    pub qdisc: Option<(String, u16)>,
}

/// What could not be told of, or counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostEvents {
    /// Packets that are in the totals, but were not told: the ring was full.
    pub untold: u64,
    /// Packets that are not in the totals: too many places and reasons.
    pub uncounted: u64,
    /// Drops that happened while the program was at work on the same CPU: nothing is known of them, not
    /// even whether they were V's. `None`: the kernel does not say.
    pub missed: Option<u64>,
}

/// A program at the tracepoint `kfree_skb`, from when it is started until it is stopped (or dropped).
/// Nothing is pinned and nothing changed: there may be several at once, and migrations.
pub struct DropTrace {
    ring: RingBuf<MapData>,
    drops: DropMap,
    lost: PerCpuArray<MapData, u64>,
    reasons: DropReasons,
    program: &'static str,
    link: Option<RawTracePointLinkId>,
    ebpf: Ebpf,
}

impl DropTrace {
    /// Starts to watch the packets from and to these addresses, in all network namespaces.
    ///
    /// # Errors
    /// The kernel has no reasons to tell (before Linux 5.17), no BTF, or does not let us.
    pub fn start(addresses: &[IpAddr]) -> Result<Self, WitnessMissing> {
        let btf = Btf::of_kernel()?;
        let witness = Witness::from_btf(&btf)?;
        let offsets = trace_offsets(&btf)?;
        // Linux 6.11 tells the receiving socket as well.
        let program = if btf.tracepoint_arguments("btf_trace_kfree_skb")? >= 4 {
            names::PROGRAM_TRACE_SOCKET
        } else {
            names::PROGRAM_TRACE
        };
        Self::attach(addresses, witness, offsets, program)
            .map_err(|error| WitnessMissing::Tracepoint(Box::new(error)))
    }

    fn attach(
        addresses: &[IpAddr],
        witness: Witness,
        offsets: TraceOffsets,
        program: &'static str,
    ) -> Result<Self, EbpfError> {
        let sizes = [(names::MAP_EVENTS, RING_BYTES), (names::MAP_COPIES, 1)];
        let mut ebpf = object::load_sized(&sizes)?;
        let config = Config {
            offsets: witness.offsets,
            ..Config::default()
        };
        write_config(&mut ebpf, config)?;
        write_addresses(&mut ebpf, addresses)?;
        write_offsets(&mut ebpf, offsets)?;
        let raw = object::program::<RawTracePoint>(&mut ebpf, program)?;
        raw.load().map_err(EbpfError::load(program))?;
        let ring = object::map(&mut ebpf, names::MAP_EVENTS)?;
        let drops = DropMap::take(&mut ebpf)?;
        let lost = object::map(&mut ebpf, names::MAP_LOST)?;
        let raw = object::program::<RawTracePoint>(&mut ebpf, program)?;
        let link = raw
            .attach("kfree_skb")
            .map_err(EbpfError::attach(program, "kfree_skb"))?;
        Ok(Self {
            ring,
            drops,
            lost,
            reasons: witness.reasons,
            program,
            link: Some(link),
            ebpf,
        })
    }

    /// Ready when there may be drops to take. For the runtime that it is called in.
    ///
    /// # Errors
    /// The descriptor can't be waited for.
    pub fn readiness(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let ring = self.ring.as_fd().try_clone_to_owned()?;
        // SAFETY: an open descriptor, which is owned, and so neither changed nor closed, by what waits.
        Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
    }

    /// The next drop, if there is one.
    pub fn take(&mut self) -> Option<DroppedPacket> {
        let event = event(&self.ring.next()?)?;
        Some(DroppedPacket::new(&event, &self.reasons))
    }

    /// Detaches. What was told and counted until then can still be read.
    ///
    /// # Errors
    /// The kernel does not let go.
    pub fn stop(&mut self) -> Result<(), EbpfError> {
        let Some(link) = self.link.take() else {
            return Ok(());
        };
        let program = self.program;
        object::program::<RawTracePoint>(&mut self.ebpf, program)?
            .detach(link)
            .map_err(|source| EbpfError::Detach {
                program,
                source: Box::new(source),
            })
    }

    /// All that was dropped since the start, by place and reason, whether it was told or not; the most
    /// frequent first, without symbols.
    ///
    /// # Errors
    /// The kernel does not show its map.
    pub fn totals(&self) -> Result<Vec<PacketDrop>, EbpfError> {
        self.drops.unnamed(&self.reasons)
    }

    /// What is missing in what was told, and in the totals.
    ///
    /// # Errors
    /// The kernel does not show its map.
    pub fn lost(&self) -> Result<LostEvents, EbpfError> {
        let sum = |what: Lost| {
            let per_cpu = self.lost.get(&what.index(), 0);
            per_cpu
                .map(|values| values.iter().sum())
                .map_err(EbpfError::map("read", names::MAP_LOST))
        };
        Ok(LostEvents {
            untold: sum(Lost::Events)?,
            uncounted: sum(Lost::Totals)?,
            missed: self.missed(),
        })
    }

    /// The kernel runs no tracing program inside of itself (Linux 5.12 counts how often it did not).
    fn missed(&self) -> Option<u64> {
        let Some(aya::programs::Program::RawTracePoint(program)) = self.ebpf.program(self.program)
        else {
            return None;
        };
        let fd = program.fd().ok()?.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        info.lines()
            .find_map(|line| line.strip_prefix("recursion_misses:"))
            .and_then(|count| count.trim().parse().ok())
    }
}

impl std::fmt::Debug for DropTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DropTrace")
            .field("program", &self.program)
            .field("attached", &self.link.is_some())
            .finish_non_exhaustive()
    }
}

fn trace_offsets(btf: &Btf) -> Result<TraceOffsets, BtfError> {
    Ok(TraceOffsets {
        skb_iif: btf.offset("sk_buff", "skb_iif")?,
        skb_queue_mapping: btf.offset("sk_buff", "queue_mapping")?,
        dev_name: btf.offset("net_device", "name")?,
        dev_tx: btf.offset("net_device", "_tx")?,
        dev_tx_queues: btf.offset("net_device", "num_tx_queues")?,
        queue_size: btf.size("netdev_queue")?,
        queue_qdisc: btf.offset("netdev_queue", "qdisc")?,
        qdisc_handle: btf.offset("Qdisc", "handle")?,
        qdisc_ops: btf.offset("Qdisc", "ops")?,
        qdisc_ops_id: btf.offset("Qdisc_ops", "id")?,
        sock_net: btf.offset("sock", "__sk_common.skc_net.net")?,
    })
}

fn write_offsets(ebpf: &mut Ebpf, offsets: TraceOffsets) -> Result<(), EbpfError> {
    let map = names::MAP_TRACE;
    let mut slot = Array::<_, TraceOffsets>::try_from(object::map_mut(ebpf, map)?)
        .map_err(EbpfError::map("open", map))?;
    slot.set(0, offsets, 0)
        .map_err(EbpfError::map("write", map))
}

/// What the program wrote.
fn event(bytes: &[u8]) -> Option<DropEvent> {
    if bytes.len() < size_of::<DropEvent>() {
        return None;
    }
    // SAFETY: there are enough bytes, and every bit pattern of a DropEvent is valid.
    Some(unsafe { bytes.as_ptr().cast::<DropEvent>().read_unaligned() })
}

impl DroppedPacket {
    fn new(event: &DropEvent, reasons: &DropReasons) -> Self {
        let packets = u64::from(event.packets);
        let qdisc = text(&event.qdisc)
            .map(|kind| (kind, u16::try_from(event.qdisc_handle >> 16).unwrap_or(0)));
        Self {
            time_ns: event.time_ns,
            drop: PacketDrop::new(&event.key, packets, reasons),
            source: ip(&event.source),
            destination: ip(&event.destination),
            protocol: u8::try_from(event.protocol).unwrap_or(u8::MAX),
            ports: ports(event.ports),
            tcp_flags: u8::try_from(event.tcp_flags).unwrap_or(0),
            fragment: event.fragment != 0,
            length: event.length,
            device: text(&event.device),
            qdisc,
        }
    }
}

fn ip(address: &Address) -> IpAddr {
    Ipv6Addr::from(address.bytes()).to_canonical()
}

/// They stand in memory as in the packet: in network order.
fn ports(ports: u32) -> Option<(u16, u16)> {
    let [a, b, c, d] = ports.to_ne_bytes();
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    (ports != (0, 0)).then_some(ports)
}

fn text(name: &[u8; NAME_BYTES]) -> Option<String> {
    let length = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(NAME_BYTES);
    (length != 0).then(|| String::from_utf8_lossy(&name[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use katamaran_common::layout::DropKey;

    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_written() {
        let mut written = DropEvent {
            time_ns: 7,
            key: DropKey {
                location: 0xffff_1234,
                ..DropKey::default()
            },
            source: Address::mapped(u32::from_ne_bytes([10, 0, 0, 1])),
            destination: Address::from_bytes(Ipv6Addr::LOCALHOST.octets()),
            ports: u32::from_ne_bytes([0, 53, 0x1f, 0x90]),
            packets: 3,
            ..DropEvent::default()
        };
        written.device[..4].copy_from_slice(b"tap0");
        written.qdisc_handle = 0x8001_0000;
        written.qdisc[..3].copy_from_slice(b"tbf");
        let packet = DroppedPacket::new(&written, &DropReasons::default());
        assert_eq!(packet.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(packet.destination, IpAddr::from(Ipv6Addr::LOCALHOST));
        assert_eq!(packet.ports, Some((53, 8080)));
        assert_eq!(packet.device.as_deref(), Some("tap0"));
        assert_eq!(packet.qdisc, Some(("tbf".to_owned(), 0x8001)));
        assert_eq!(packet.drop.packets, 3);
    }

    #[test]
    fn half_an_event_is_none() {
        assert_eq!(event(&[0; size_of::<DropEvent>() - 1]), None);
        assert_eq!(
            event(&[0; size_of::<DropEvent>()]),
            Some(DropEvent::default())
        );
    }
}
