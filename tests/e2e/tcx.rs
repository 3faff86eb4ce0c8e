//! A TC program that drops marked packets and counts them, put ahead of katamaran's own.

use std::os::fd::OwnedFd;

use katamaran_tests::bpf::{Counter, attach, one};
use katamaran_tests::lab::Netns;

use crate::rules::DSCP;

pub(crate) use katamaran_tests::bpf::Way;

/// The program, attached; off the device when dropped.
pub(crate) struct Program {
    counter: Counter,
    _link: OwnedFd,
}

impl Program {
    /// Puts the program ahead of all others on a device. It drops marked IPv4 packets of `protocol`.
    pub(crate) fn attach(netns: &Netns, device: &str, way: Way, protocol: u8) -> Self {
        let counter = Counter::new().unwrap();
        let code = instructions(counter.descriptor(), protocol);
        let link = attach(netns, device, way, &code).unwrap();
        Self {
            counter,
            _link: link,
        }
    }

    /// How many packets it has dropped.
    pub(crate) fn count(&self) -> u64 {
        self.counter.get().unwrap()
    }
}

fn instructions(counter: i32, protocol: u8) -> Vec<u64> {
    const PASS: i32 = -1;
    const DROP: i32 = 2;
    const IPV4: i32 = 0x0008; // As it stands in the packet.
    vec![
        one(0x61, 2, 1, 76, 0),                    // r2 = skb->data
        one(0x61, 3, 1, 80, 0),                    // r3 = skb->data_end
        one(0xbf, 4, 2, 0, 0),                     // r4 = r2
        one(0x07, 4, 0, 0, 34),                    // r4 += Ethernet and IPv4 header
        one(0x2d, 4, 3, 18, 0),                    // if r4 > r3 goto pass
        one(0x69, 5, 2, 12, 0),                    // r5 = EtherType
        one(0x55, 5, 0, 16, IPV4),                 // if r5 != IPv4 goto pass
        one(0x71, 5, 2, 15, 0),                    // r5 = type of service
        one(0x57, 5, 0, 0, 0xfc),                  // r5 &= DSCP
        one(0x55, 5, 0, 13, i32::from(DSCP) << 2), // if r5 != ours goto pass
        one(0x71, 5, 2, 23, 0),                    // r5 = protocol
        one(0x55, 5, 0, 11, i32::from(protocol)),  // if r5 != ours goto pass
        one(0x62, 10, 0, -4, 0),                   // key = 0
        one(0xbf, 2, 10, 0, 0),                    // r2 = r10
        one(0x07, 2, 0, 0, -4),                    // r2 = &key
        one(0x18, 1, 1, 0, counter),               // r1 = the map
        0,                                         // (second half)
        one(0x85, 0, 0, 0, 1),                     // r0 = bpf_map_lookup_elem(r1, r2)
        one(0x15, 0, 0, 4, 0),                     // if r0 == 0 goto end
        one(0xb7, 1, 0, 0, 1),                     // r1 = 1
        one(0xdb, 0, 1, 0, 0),                     // *r0 += r1, atomically
        one(0xb7, 0, 0, 0, DROP),                  // r0 = drop
        one(0x95, 0, 0, 0, 0),                     // return
        // pass, end:
        one(0xb7, 0, 0, 0, PASS),
        one(0x95, 0, 0, 0, 0),
    ]
}
