//! Frames that no kernel would send.

use katamaran::net::NetNs;
use katamaran::net::packet::{FrameInjector, VnetHeader};

use crate::stage::{CLIENT, PORT, Space, UP_MAC, VM};

/// A UDP datagram to the VM in an Ethernet frame, and what is wrong with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) port: u16,
    pub(crate) bad_header_checksum: bool,
    pub(crate) bad_udp_checksum: bool,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            port: PORT,
            bad_header_checksum: false,
            bad_udp_checksum: false,
        }
    }
}

impl Frame {
    /// To the node's `up0`.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let mut frame = Vec::new();
        frame.extend(UP_MAC);
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend([8, 0]);
        let payload = [7; 32];
        let udp_length = u16::try_from(8 + payload.len()).unwrap();
        let header = frame.len();
        frame.extend([0x45, 0]);
        frame.extend((20 + udp_length).to_be_bytes());
        frame.extend([0, 1, 0, 0, 64, 17, 0, 0]);
        frame.extend(address(CLIENT));
        frame.extend(address(VM));
        let mut checksum = checksum(&frame[header..]);
        if self.bad_header_checksum {
            checksum ^= 0x5555;
        }
        frame[header + 10..header + 12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(4000_u16.to_be_bytes());
        frame.extend(self.port.to_be_bytes());
        frame.extend(udp_length.to_be_bytes());
        // 0: there is none.
        frame.extend(if self.bad_udp_checksum {
            [0x12, 0x34]
        } else {
            [0, 0]
        });
        frame.extend(payload);
        frame
    }
}

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Sends it out of a device.
pub(crate) fn send(space: &Space, device: &str, frame: Frame) {
    let netns = NetNs::open(space.netns().path()).unwrap();
    let mut injector = FrameInjector::open(&netns, space.ifindex(device)).unwrap();
    injector
        .inject(VnetHeader::default(), &frame.bytes())
        .unwrap();
}
