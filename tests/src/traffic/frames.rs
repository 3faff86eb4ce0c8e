//! The same frame again and again, as a card's driver hands frames to the node.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};

use crate::bpf::LiveFrames;
use crate::lab::Netns;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERNET_LENGTH: usize = 14;
const IPIP: u8 = 4;
const UDP: u8 = 17;

/// Lets a device receive.
#[derive(Debug)]
pub(crate) struct Sender {
    netns: Netns,
    frames: LiveFrames,
}

impl Sender {
    /// On a device of a namespace.
    pub(crate) fn new(netns: &Netns, device: &str, frame: Vec<u8>) -> Result<Self> {
        Ok(Self {
            netns: netns.clone(),
            frames: LiveFrames::on(netns, device, frame)?,
        })
    }

    /// Lets it receive so many, and returns the CPU time that this and all that becomes of them take: whoever else wants the machine
    /// does not count.
    pub(crate) fn send(&self, packets: u32) -> Result<Duration> {
        self.netns.run(|| {
            let began = own_time()?;
            self.frames.receive(packets)?;
            Ok(own_time()? - began)
        })?
    }
}

/// The packet of an Ethernet frame in another IPv4 packet (IPIP).
pub(crate) fn in_ipip(frame: &[u8], outer: (Ipv4Addr, Ipv4Addr)) -> Result<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(ETHERNET_LENGTH);
    let header = ipv4_header(outer, IPIP, packet.len())?;
    Ok([ethernet, &header, packet].concat())
}

fn ipv4_header(
    (source, destination): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    payload: usize,
) -> Result<Vec<u8>> {
    let mut ip = vec![0x45, 0];
    ip.extend(u16::try_from(20 + payload)?.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(source.octets());
    ip.extend(destination.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(ip)
}

fn own_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// A UDP datagram over IPv4 in an Ethernet frame. It has no UDP checksum.
pub(crate) fn udp_frame(
    to: [u8; 6],
    from: [u8; 6],
    addresses: (Ipv4Addr, Ipv4Addr),
    payload: usize,
) -> Result<Vec<u8>> {
    let udp = u16::try_from(8 + payload)?;
    let ip = ipv4_header(addresses, UDP, udp.into())?;
    let [port, length] = [9_u16.to_be_bytes(), udp.to_be_bytes()];
    let udp = [&port[..], &port, &length, &[0, 0], &vec![0; payload]].concat();
    Ok([&to[..], &from, &ETHERTYPE_IPV4.to_be_bytes(), &ip, &udp].concat())
}
