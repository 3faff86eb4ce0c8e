//! What must be known of network devices, all in the calling thread's namespace.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_indextoname;
use nix::sys::socket::SockaddrLike as _;

use super::error::EbpfError;

/// The name of a device.
pub(super) fn name(ifindex: u32) -> Result<String, EbpfError> {
    let missing = |source| EbpfError::NoDevice { ifindex, source };
    let name = if_indextoname(ifindex).map_err(|errno| missing(errno.into()))?;
    // nix 0.31 takes libc's null for success.
    if name.is_empty() {
        return Err(missing(io::ErrorKind::NotFound.into()));
    }
    Ok(name.to_string_lossy().into_owned())
}

/// The hardware address of an Ethernet device.
pub(super) fn ethernet_address(ifindex: u32) -> Result<[u8; 6], EbpfError> {
    let name = name(ifindex)?;
    let all = getifaddrs().map_err(|errno| EbpfError::NoDevice {
        ifindex,
        source: errno.into(),
    })?;
    let link = all
        .filter(|entry| entry.interface_name == name)
        .filter_map(|entry| entry.address)
        .find_map(|address| {
            (address.family() == Some(nix::sys::socket::AddressFamily::Packet))
                .then(|| address.as_link_addr().copied())
                .flatten()
        })
        .ok_or_else(|| EbpfError::NoDevice {
            ifindex,
            source: io::Error::from(io::ErrorKind::NotFound),
        })?;
    match link.addr() {
        Some(address) if link.hatype() == libc::ARPHRD_ETHER => Ok(address),
        _ => Err(EbpfError::NotEthernet { name }),
    }
}

/// Whether a device of the calling thread's namespace has an Ethernet header, which the programs rely on.
///
/// # Errors
/// There is no such device.
pub fn is_ethernet(ifindex: u32) -> Result<bool, EbpfError> {
    match ethernet_address(ifindex) {
        Ok(_) => Ok(true),
        Err(EbpfError::NotEthernet { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The start of an Ethernet header.
pub(super) fn ethernet_addresses(to: [u8; 6], from: [u8; 6]) -> [u8; 12] {
    let mut header = [0; 12];
    header[..6].copy_from_slice(&to);
    header[6..].copy_from_slice(&from);
    header
}

/// Inode number of the calling thread's network namespace.
pub(super) fn netns_inum() -> Result<u64, EbpfError> {
    let metadata = fs::metadata("/proc/thread-self/ns/net")
        .map_err(|source| EbpfError::Namespace { source })?;
    Ok(metadata.ino())
}

/// Whether a process is in a network namespace, or it has a name.
pub(super) fn netns_is_alive(inum: u64) -> bool {
    let is_it = |path: PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inum);
    let entries = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    entries("/run/netns").any(|name| is_it(name.path()))
        || entries("/proc").any(|process| is_it(process.path().join("ns/net")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_has_no_name() {
        assert_eq!(name(1).unwrap(), "lo");
        let error = name(0x7fff_fff0).unwrap_err();
        assert!(matches!(error, EbpfError::NoDevice { .. }), "{error}");
    }
}
