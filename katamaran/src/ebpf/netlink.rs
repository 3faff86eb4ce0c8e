//! Two requests to traffic control that aya has no function for: is a clsact qdisc still in use, and
//! remove it. Needed only on kernels without TCX.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket,
};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const TCA_KIND: u16 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;

/// Removes a device's clsact qdisc, unless somebody has filters there.
pub(super) fn remove_unused_clsact(ifindex: u32) -> io::Result<()> {
    for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
        let replies = exchange(&request(
            RTM_GETTFILTER,
            NLM_F_DUMP,
            ifindex,
            0,
            parent,
            None,
        ))?;
        if replies.contains(&RTM_NEWTFILTER) {
            return Ok(());
        }
    }
    let removal = request(
        RTM_DELQDISC,
        NLM_F_ACK,
        ifindex,
        CLSACT_HANDLE,
        TC_H_CLSACT,
        Some(b"clsact\0"),
    );
    match exchange(&removal) {
        // Gone already, or its device is.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// `nlmsghdr`, `tcmsg` and at most one attribute.
fn request(
    kind: u16,
    flags: u16,
    ifindex: u32,
    handle: u32,
    parent: u32,
    tca_kind: Option<&[u8; 7]>,
) -> Vec<u8> {
    let mut message = vec![0u8; HEADER];
    message.extend([0u8; 4]);
    for field in [ifindex, handle, parent, 0] {
        message.extend(field.to_ne_bytes());
    }
    if let Some(text) = tca_kind {
        message.extend(11u16.to_ne_bytes());
        message.extend(TCA_KIND.to_ne_bytes());
        message.extend(text);
        message.push(0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    message
}

/// Sends a request and collects the types of all messages of the answer.
fn exchange(message: &[u8]) -> io::Result<Vec<u16>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(message)],
        &[],
        MsgFlags::empty(),
        Some(&kernel),
    )?;
    let mut kinds = Vec::new();
    let mut buffer = vec![0u8; 65_536];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            if kind == NLMSG_DONE {
                return Ok(kinds);
            }
            if kind == NLMSG_ERROR && rest.len() >= HEADER + 4 {
                let code = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                return Ok(kinds);
            }
            kinds.push(kind);
            let aligned = size.max(HEADER).next_multiple_of(4);
            rest = rest.get(aligned..).unwrap_or_default();
        }
    }
}
