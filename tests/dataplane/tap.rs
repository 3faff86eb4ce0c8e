//! A tap, opened the way QEMU opens it: with virtio headers and all offloads.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::netns::Netns;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
/// Checksum, TCP v4 and v6, and (Linux 6.2) UDP v4 and v6 segmentation.
const OFFLOADS: [libc::c_uint; 2] = [0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x01 | 0x02 | 0x04];

/// Longer than any window of TCP: what is dropped is then dropped on purpose, not for want of a
/// reader that got no CPU. Set while the device is down: on a live one it would drop packets.
const RING_PACKETS: u32 = 16_384;

/// Creates a tap in a namespace and returns its descriptor, which does not block.
pub(crate) fn open(netns: &Netns, name: &str, mac: &str) -> File {
    let file = netns.run(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap();
        attach(&file, name);
        file
    });
    netns.ip(&format!(
        "link set {name} address {mac} txqueuelen {RING_PACKETS}"
    ));
    netns.ip(&format!("link set {name} up"));
    file
}

fn attach(file: &File, name: &str) {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).unwrap();
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: an open descriptor and a request that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    let accepted = OFFLOADS.iter().any(|offloads| {
        // SAFETY: an open descriptor; the argument is a number.
        unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, *offloads) == 0 }
    });
    assert!(
        accepted,
        "TUNSETOFFLOAD: {}",
        std::io::Error::last_os_error()
    );
}
