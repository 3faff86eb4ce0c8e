//! The network card: a tap, opened and read as QEMU does it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::machine::Machine;
use crate::traffic::stay_on_one_cpu;

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
nix::ioctl_write_ptr!(tun_set_iff, b'T', 202, libc::c_int);
nix::ioctl_write_ptr!(tun_set_vnet_header, b'T', 216, libc::c_int);
nix::ioctl_write_int!(tun_set_offload, b'T', 208);

/// The header's length before a guest's driver has said what it can do.
const HOST_HEADER: libc::c_int = 10;
/// The header's length with a virtio 1.0 driver.
pub(super) const GUEST_HEADER: libc::c_int = 12;
/// The longest frame, with its header.
const BUFFER: usize = 68 << 10;

/// Opens the tap, which may be there already.
pub(crate) fn open(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: an open descriptor and a request of the kind that this call takes.
    unsafe { tun_set_iff(file.as_raw_fd(), (&raw const request).cast()) }
        .with_context(|| format!("open tap {name}"))?;
    set_header(&file, HOST_HEADER).context("set the header's length")?;
    // A guest that offers no offloads gets whole packets with whole checksums.
    // SAFETY: an open descriptor; the argument is a number.
    unsafe { tun_set_offload(file.as_raw_fd(), 0) }.context("turn offloads off")?;
    Ok(file)
}

pub(super) fn set_header(tap: &File, length: libc::c_int) -> io::Result<()> {
    // SAFETY: an open descriptor and a number that outlives the call.
    unsafe { tun_set_vnet_header(tap.as_raw_fd(), &raw const length) }?;
    Ok(())
}

/// Sends a frame of the running guest.
pub(super) fn send(mut tap: &File, frame: &[u8]) -> io::Result<()> {
    let header = [0; GUEST_HEADER as usize];
    tap.write_all(&[&header, frame].concat())
}

/// Reads the tap from now on.
pub(super) fn start(machine: &Arc<Machine>) {
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        // What can't be had only costs the order of the answers.
        stay_on_one_cpu().ok();
        let mut buffer = vec![0; BUFFER];
        loop {
            wait_until_wanted(&machine);
            let mut fds = [PollFd::new(machine.tap.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::NONE).is_ok() {
                take_one(&machine, &mut buffer);
            }
        }
    });
}

/// A VM that does not run has taken one frame, and its card asks for no more. It is the first that the VM gets.
fn wait_until_wanted(machine: &Machine) {
    let mut state = machine
        .changed
        .wait_while(machine.lock(), |state| {
            state.swallowed.is_some() && !state.running()
        })
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(frame) = state.swallowed.take() {
        machine.deliver(&mut state, &frame);
    }
}

/// Reads first and asks later whether the VM runs, as QEMU does.
fn take_one(machine: &Machine, buffer: &mut [u8]) {
    let _main_loop = machine.main_loop();
    let mut state = machine.lock();
    let header = if state.header_of_guest {
        GUEST_HEADER
    } else {
        HOST_HEADER
    };
    let header = usize::try_from(header).unwrap_or(0);
    let Ok(length) = (&machine.tap).read(buffer) else {
        return;
    };
    let Some(frame) = buffer.get(header..length) else {
        return;
    };
    if state.running() {
        machine.deliver(&mut state, frame);
    } else {
        state.swallowed = Some(frame.to_vec());
    }
}
