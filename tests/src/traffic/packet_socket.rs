//! Packet sockets: frames of one device, past the kernel's own network stack.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;

/// Opens one on a device of the calling thread's namespace, for frames of one EtherType; 0: it receives none.
pub(crate) fn open(device: &str, ethertype: u16) -> Result<OwnedFd> {
    let index = if_nametoindex(device).with_context(|| format!("look up {device}"))?;
    let protocol = ethertype.to_be();
    // SAFETY: plain system calls; the result is checked before it becomes a descriptor.
    let socket = unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
        ensure!(
            fd >= 0,
            "open a packet socket: {}",
            std::io::Error::last_os_error()
        );
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    let length = u32::try_from(size_of_val(&address))?;
    // SAFETY: an address of the length that is told.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    ensure!(
        bound == 0,
        "bind to {device}: {}",
        std::io::Error::last_os_error()
    );
    Ok(socket)
}
