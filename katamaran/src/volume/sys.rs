//! The ioctls that no safe wrapper covers: the only `unsafe` code of [`crate::volume`].

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

/// linux/pr.h: a reservation, or the type of one.
#[repr(C)]
struct PrReservation {
    key: u64,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct PrRegistration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    _pad: u32,
}

#[repr(C)]
struct PrPreempt {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

mod raw {
    use super::{PrPreempt, PrRegistration, PrReservation};

    nix::ioctl_write_ptr!(pr_register, b'p', 200, PrRegistration);
    nix::ioctl_write_ptr!(pr_reserve, b'p', 201, PrReservation);
    nix::ioctl_write_ptr!(pr_release, b'p', 202, PrReservation);
    nix::ioctl_write_ptr!(pr_preempt, b'p', 203, PrPreempt);
    nix::ioctl_readwrite!(nvme_io, b'N', 0x43, super::NvmeCommand);
    nix::ioctl_none!(nvme_id, b'N', 0x40);
    nix::ioctl_readwrite_bad!(sg_io, super::SG_IO, super::SgIo);
}

/// Registers `new_key` where `old_key` is registered (0: nothing is). 0 as the new one unregisters.
/// Like all of these, `Ok` carries the device's status (`enum pr_status`), and 0 alone is success.
pub(super) fn pr_register(file: &File, old_key: u64, new_key: u64) -> Result<c_int, Errno> {
    let registration = PrRegistration {
        old_key,
        new_key,
        flags: 0,
        _pad: 0,
    };
    // SAFETY: the kernel reads one `pr_registration` from the pointer, which is valid for that.
    unsafe { raw::pr_register(file.as_raw_fd(), &raw const registration) }
}

pub(super) fn pr_reserve(file: &File, key: u64, kind: u32) -> Result<c_int, Errno> {
    let reservation = PrReservation {
        key,
        kind,
        flags: 0,
    };
    // SAFETY: the kernel reads one `pr_reservation` from the pointer, which is valid for that.
    unsafe { raw::pr_reserve(file.as_raw_fd(), &raw const reservation) }
}

pub(super) fn pr_release(file: &File, key: u64, kind: u32) -> Result<c_int, Errno> {
    let reservation = PrReservation {
        key,
        kind,
        flags: 0,
    };
    // SAFETY: the kernel reads one `pr_reservation` from the pointer, which is valid for that.
    unsafe { raw::pr_release(file.as_raw_fd(), &raw const reservation) }
}

/// Preempts the key `theirs` by the registered key `ours`.
///
/// N.B. What the kernel calls `old_key` is the caller's own one, against its documentation: that is
/// how sd_pr_preempt() and nvme_pr_preempt() pass them on, and how nfsd calls it.
pub(super) fn pr_preempt(file: &File, ours: u64, theirs: u64, kind: u32) -> Result<c_int, Errno> {
    let preempt = PrPreempt {
        old_key: ours,
        new_key: theirs,
        kind,
        flags: 0,
    };
    // SAFETY: the kernel reads one `pr_preempt` from the pointer, which is valid for that.
    unsafe { raw::pr_preempt(file.as_raw_fd(), &raw const preempt) }
}

/// linux/nvme_ioctl.h, `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const NVME_RESERVATION_REPORT: u8 = 0x0e;

/// The namespace's number, if this is an NVMe namespace.
pub(super) fn nvme_namespace(file: &File) -> Result<u32, Errno> {
    // SAFETY: takes no argument.
    let id = unsafe { raw::nvme_id(file.as_raw_fd()) }?;
    u32::try_from(id).map_err(|_negative| Errno::EINVAL)
}

/// Reservation Report into `data`; `extended` asks for host identifiers of 128 bits. `Ok` carries the
/// command's status, 0 for success.
pub(super) fn nvme_reservation_report(
    file: &File,
    namespace: u32,
    extended: bool,
    data: &mut [u8],
) -> Result<c_int, Errno> {
    let length = u32::try_from(data.len()).map_err(|_too_big| Errno::EINVAL)?;
    let mut command = NvmeCommand {
        opcode: NVME_RESERVATION_REPORT,
        nsid: namespace,
        addr: data.as_mut_ptr().expose_provenance() as u64,
        data_len: length,
        cdw10: length / 4 - 1,
        cdw11: extended.into(),
        ..NvmeCommand::default()
    };
    // SAFETY: the kernel reads and writes one `nvme_passthru_cmd`, and writes at most `data_len` bytes to
    // `addr`, which is `data`, mutably borrowed for the call.
    unsafe { raw::nvme_io(file.as_raw_fd(), &raw mut command) }
}

/// scsi/sg.h.
const SG_IO: u64 = 0x2285;
const SG_DXFER_FROM_DEV: c_int = -3;
const SG_TIMEOUT_MS: u32 = 3000;

/// scsi/sg.h, `struct sg_io_hdr`.
#[repr(C)]
struct SgIo {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *mut u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: c_int,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: c_int,
    duration: u32,
    info: u32,
}

/// Sends a SCSI command that reads into `data`; returns its status byte, 0 for GOOD.
pub(super) fn scsi_read(file: &File, command: &mut [u8], data: &mut [u8]) -> Result<u8, Errno> {
    let mut sense = [0_u8; 32];
    let too_big = |_| Errno::EINVAL;
    let mut header = SgIo {
        interface_id: c_int::from(b'S'),
        dxfer_direction: SG_DXFER_FROM_DEV,
        cmd_len: u8::try_from(command.len()).map_err(too_big)?,
        mx_sb_len: 32,
        iovec_count: 0,
        dxfer_len: u32::try_from(data.len()).map_err(too_big)?,
        dxferp: data.as_mut_ptr(),
        cmdp: command.as_mut_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: SG_TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the kernel reads and writes one `sg_io_hdr`, reads `cmd_len` bytes of `command`, and writes
    // at most `dxfer_len` bytes to `data` and `mx_sb_len` to `sense`; all of them outlive the call.
    unsafe { raw::sg_io(file.as_raw_fd(), &raw mut header) }?;
    if header.host_status != 0 {
        return Err(Errno::EIO);
    }
    Ok(header.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<PrReservation>(), 16);
        assert_eq!(size_of::<PrRegistration>(), 24);
        assert_eq!(size_of::<PrPreempt>(), 24);
        assert_eq!(size_of::<NvmeCommand>(), 72);
        assert_eq!(size_of::<SgIo>(), 88);
    }

    #[test]
    fn a_file_has_none_of_these() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(pr_register(&file, 0, 1), Err(Errno::ENOTTY));
        assert_eq!(pr_reserve(&file, 1, 3), Err(Errno::ENOTTY));
        assert_eq!(pr_release(&file, 1, 3), Err(Errno::ENOTTY));
        assert_eq!(pr_preempt(&file, 1, 2, 3), Err(Errno::ENOTTY));
        assert_eq!(nvme_namespace(&file), Err(Errno::ENOTTY));
        assert_eq!(
            scsi_read(&file, &mut [0; 10], &mut [0; 8]),
            Err(Errno::ENOTTY)
        );
    }
}
