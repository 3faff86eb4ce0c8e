//! The system calls that no safe wrapper covers: the only `unsafe` code of [`crate::net`].

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::pidfd::owned;

/// `TUNGETIFF`: name and flags of the tap behind a descriptor (`struct ifreq`).
const TUNGETIFF: u32 = 0x8004_54d2;
/// `TUNGETVNETHDRSZ`: length of the header in front of each frame (`int`).
const TUNGETVNETHDRSZ: u32 = 0x8004_54d7;
/// `TUNGETDEVNETNS`: a descriptor of the namespace that the tap is in. Linux 5.2.
const TUNGETDEVNETNS: u32 = 0x54e3;

const PACKET_VNET_HDR: c_int = 15;
const PACKET_QDISC_BYPASS: c_int = 20;

/// The name and the `IFF_*` flags of the tap behind a descriptor.
pub(super) fn tun_iff(tun: BorrowedFd<'_>) -> Result<(String, u32), Errno> {
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most one `ifreq` to the pointer, which is valid for that.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETIFF.into(), &raw mut request) })?;
    let name = request
        .ifr_name
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| char::from(byte.cast_unsigned()))
        .collect();
    // SAFETY: TUNGETIFF fills in `ifru_flags`, and any bits are a valid `c_short`.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name, u32::from(flags.cast_unsigned())))
}

/// The length in bytes of the virtio-net header in front of each frame.
pub(super) fn tun_vnet_header_size(tun: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut size: c_int = 0;
    // SAFETY: the kernel writes one `int` to the pointer, which is valid for that.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETVNETHDRSZ.into(), &raw mut size) })?;
    usize::try_from(size).map_err(|_negative| Errno::EINVAL)
}

/// The network namespace of the tap behind a descriptor.
pub(super) fn tun_netns(tun: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no argument and returns a new descriptor.
    owned(unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETDEVNETNS.into(), 0_u64) }.into())
}

/// Reads without waiting, whatever the descriptor's own mode is: that mode is shared with the
/// process that we have the descriptor from.
pub(super) fn read_nowait(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let target = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: one iovec, which covers exactly `buffer`, mutably borrowed for the call.
    let length =
        unsafe { libc::preadv2(fd.as_raw_fd(), &raw const target, 1, -1, libc::RWF_NOWAIT) };
    Errno::result(length).map(isize::cast_unsigned)
}

/// Binds a packet socket to a device, for sending only (protocol 0 receives nothing).
pub(super) fn bind_packet(socket: BorrowedFd<'_>, ifindex: u32) -> Result<(), Errno> {
    // SAFETY: `sockaddr_ll` is plain data for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(|_too_big| Errno::EINVAL)?;
    address.sll_ifindex = c_int::try_from(ifindex).map_err(|_too_big| Errno::ENODEV)?;
    let length = u32::try_from(size_of_val(&address)).map_err(|_too_big| Errno::EINVAL)?;
    // SAFETY: the pointer is to a `sockaddr_ll` of `length` bytes, valid for the call.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
        .map(drop)
}

/// Sends packets straight to the driver, past the queueing discipline.
pub(super) fn set_qdisc_bypass(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_packet_option(socket, PACKET_QDISC_BYPASS)
}

/// Each packet has a virtio-net header of 10 bytes in front.
pub(super) fn set_vnet_header(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_packet_option(socket, PACKET_VNET_HDR)
}

fn set_packet_option(socket: BorrowedFd<'_>, option: c_int) -> Result<(), Errno> {
    let on: c_int = 1;
    let length = u32::try_from(size_of_val(&on)).map_err(|_too_big| Errno::EINVAL)?;
    // SAFETY: the pointer is to one `int`, valid for the call.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            length,
        )
    })
    .map(drop)
}
