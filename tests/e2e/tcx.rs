//! A TC program that drops marked packets and counts them, put ahead of katamaran's own.
//!
//! Written in the kernel's instructions: no compiler for it need be there, and nothing is shared with
//! what is tested.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use katamaran_tests::lab::Netns;
use nix::net::if_::if_nametoindex;

use crate::rules::DSCP;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_F_BEFORE: u32 = 1 << 3;

/// Which way packets go through the device.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// `BPF_TCX_INGRESS`
    In = 46,
    /// `BPF_TCX_EGRESS`
    Out = 47,
}

/// The program, attached; off the device when dropped.
pub(crate) struct Program {
    counter: OwnedFd,
    _link: OwnedFd,
}

impl Program {
    /// Puts the program ahead of all others on a device. It drops marked IPv4 packets of `protocol`.
    pub(crate) fn attach(netns: &Netns, device: &str, way: Way, protocol: u8) -> Self {
        let counter = bpf(BPF_MAP_CREATE, &[BPF_MAP_TYPE_ARRAY, 4, 8, 1]);
        let code = instructions(counter.as_raw_fd(), protocol);
        let license = c"GPL";
        let mut load = vec![BPF_PROG_TYPE_SCHED_CLS, u32::try_from(code.len()).unwrap()];
        load.extend(halves(code.as_ptr() as u64));
        load.extend(halves(license.as_ptr() as u64));
        let program = bpf(BPF_PROG_LOAD, &load);
        let link = netns.run(|| {
            let index = if_nametoindex(device).unwrap();
            let program = u32::try_from(program.as_raw_fd()).unwrap();
            bpf(BPF_LINK_CREATE, &[program, index, way as u32, BPF_F_BEFORE])
        });
        Self {
            counter,
            _link: link.unwrap(),
        }
    }

    /// How many packets it has dropped.
    pub(crate) fn count(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attributes = vec![u32::try_from(self.counter.as_raw_fd()).unwrap(), 0];
        attributes.extend(halves(std::ptr::from_ref(&key) as u64));
        attributes.extend(halves(std::ptr::from_mut(&mut value) as u64));
        let result = call(BPF_MAP_LOOKUP_ELEM, &attributes);
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        value
    }
}

/// A 64-bit attribute as two of 32 bits, on a little-endian machine.
fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_le_bytes();
    let half =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [half(0), half(4)]
}

fn bpf(command: i64, attributes: &[u32]) -> OwnedFd {
    let result = call(command, attributes);
    assert!(
        result >= 0,
        "bpf command {command}: {}",
        std::io::Error::last_os_error()
    );
    let descriptor = i32::try_from(result).unwrap();
    // SAFETY: these commands return a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn call(command: i64, attributes: &[u32]) -> i64 {
    // What is not set must be zero.
    let mut all = [0_u32; 32];
    all[..attributes.len()].copy_from_slice(attributes);
    // SAFETY: the attributes are of this size, and what they point to outlives the call.
    unsafe { libc::syscall(libc::SYS_bpf, command, all.as_mut_ptr(), size_of_val(&all)) }
}

/// One instruction: code, target and source register, offset, constant.
fn one(code: u8, target: u8, source: u8, offset: i16, constant: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = constant.to_le_bytes();
    u64::from_le_bytes([code, target | source << 4, low, high, a, b, c, d])
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
