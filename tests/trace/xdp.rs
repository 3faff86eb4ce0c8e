//! The smallest XDP program.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::stage::Space;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// `r0 = XDP_DROP; exit`
const DROP: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// The start of `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    rest: [u64; 13],
}

/// The same for pinning.
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Attaches it to a device, in the kernel's generic way.
pub(crate) fn drop_everything(space: &Space, device: &str) {
    let license = c"GPL";
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        instructions: 2,
        code: DROP.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &load);
    let pin = PathBuf::from(format!("/sys/fs/bpf/{}-xdp", space.name()));
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    bpf(
        BPF_OBJ_PIN,
        &Pin {
            path: path.as_ptr() as u64,
            fd: u32::try_from(fd).unwrap(),
            flags: 0,
        },
    );
    // Not `ip -n`: that has a /sys of its own.
    let arguments = ["link", "set", "dev", device, "xdpgeneric", "pinned"];
    let arguments = [&arguments[..], &[pin.to_str().unwrap()]].concat();
    space.netns().command("ip", &arguments).unwrap();
    fs::remove_file(pin).unwrap();
}

/// The descriptor that it makes stays open until the test ends.
fn bpf<T>(command: libc::c_int, attributes: &T) -> i64 {
    // SAFETY: attributes of the kernel's layout for this command, which outlive the call, as does what they
    // point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    assert!(result >= 0, "bpf {command}: {}", io::Error::last_os_error());
    result
}
