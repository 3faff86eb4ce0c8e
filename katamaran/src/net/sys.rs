//! The system calls that no safe wrapper covers: the only `unsafe` code of [`crate::net`].

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
///
/// A file that knows no such reads (a tap of Linux 6.1, measured) is asked first whether there is anything. That is enough where nobody
/// else reads it.
pub(super) fn read_nowait(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    match read_with(fd, buffer, libc::RWF_NOWAIT) {
        Err(Errno::EOPNOTSUPP) => {}
        known => return known,
    }
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO)? {
        0 => Err(Errno::EAGAIN),
        _ => read_with(fd, buffer, 0),
    }
}

fn read_with(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: c_int) -> Result<usize, Errno> {
    let target = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: one iovec, which covers exactly `buffer`, mutably borrowed for the call.
    let length = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const target, 1, -1, flags) };
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

/// Packets of this socket are never fragmented, and are sent whatever the kernel believes of their path.
pub(super) fn set_probing(socket: BorrowedFd<'_>, v4: bool) -> Result<(), Errno> {
    if v4 {
        let probe = libc::IP_PMTUDISC_PROBE;
        set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)
    } else {
        let probe = libc::IPV6_PMTUDISC_PROBE;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)
    }
}

const SIOCETHTOOL: u32 = 0x8946;
/// `ETHTOOL_GSET`: what a device's link is like.
const ETHTOOL_GSET: u32 = 1;

/// The first fields of `struct ethtool_cmd`, 44 bytes long.
#[repr(C)]
struct EthtoolCommand {
    command: u32,
    supported: u32,
    advertising: u32,
    speed: u16,
    between: [u8; 14],
    speed_high: u16,
    rest: [u8; 14],
}

const _: () = assert!(size_of::<EthtoolCommand>() == 44);

/// The rate of a device in Mbit/s, unless its driver says that it knows none.
pub(super) fn link_megabits(socket: BorrowedFd<'_>, device: &str) -> Result<Option<u32>, Errno> {
    let mut command = EthtoolCommand {
        command: ETHTOOL_GSET,
        supported: 0,
        advertising: 0,
        speed: 0,
        between: [0; 14],
        speed_high: 0,
        rest: [0; 14],
    };
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut command).cast();
    // SAFETY: the kernel reads the `ifreq` and writes at most one `ethtool_cmd`, 44 bytes, to the pointer in it;
    // both live for the call.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL.into(), &raw mut request)
    })?;
    let megabits = u32::from(command.speed_high) << 16 | u32::from(command.speed);
    Ok((megabits != 0 && megabits != u32::MAX).then_some(megabits))
}

fn set_packet_option(socket: BorrowedFd<'_>, option: c_int) -> Result<(), Errno> {
    set_option(socket, libc::SOL_PACKET, option, 1)
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    value: c_int,
) -> Result<(), Errno> {
    let length = u32::try_from(size_of_val(&value)).map_err(|_too_big| Errno::EINVAL)?;
    // SAFETY: the pointer is to one `int`, valid for the call.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn a_file_that_knows_no_reads_without_waiting_is_read_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: takes no pointer.
        let watch = owned(unsafe { libc::inotify_init1(0) }.into()).unwrap();
        // SAFETY: an open descriptor, and a string that outlives the call.
        let watched =
            unsafe { libc::inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), libc::IN_CREATE) };
        Errno::result(watched).unwrap();
        let mut buffer = [0; 4096];
        // As a tap of Linux 6.1; without that this test would show nothing.
        let unknown = read_with(watch.as_fd(), &mut buffer, libc::RWF_NOWAIT);
        assert_eq!(unknown, Err(Errno::EOPNOTSUPP));

        assert_eq!(read_nowait(watch.as_fd(), &mut buffer), Err(Errno::EAGAIN));
        File::create(directory.path().join("file")).unwrap();
        let length = read_nowait(watch.as_fd(), &mut buffer).unwrap();
        assert!(length > 0 && buffer[..length].ends_with(b"\0"), "{length}");
        assert_eq!(read_nowait(watch.as_fd(), &mut buffer), Err(Errno::EAGAIN));
    }
}
