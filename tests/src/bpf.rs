//! TC programs written in the kernel's instructions.
//!
//! No compiler for them need be there, and nothing is shared with what is tested.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::lab::Netns;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_PIN: i64 = 6;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_PROG_GET_NEXT_ID: i64 = 11;
const BPF_MAP_GET_NEXT_ID: i64 = 12;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_GET_NEXT_ID: i64 = 31;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Which way packets go through the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `BPF_TCX_INGRESS`
    In = 46,
    /// `BPF_TCX_EGRESS`
    Out = 47,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::In => "ingress",
            Self::Out => "egress",
        }
    }
}

/// Puts a program ahead of all others on a device, as long as what is returned lives.
///
/// # Errors
///
/// When the kernel does not take it.
pub fn attach(netns: &Netns, device: &str, way: Way, code: &[u64]) -> Result<OwnedFd> {
    let program = load(BPF_PROG_TYPE_SCHED_CLS, code)?;
    if !katamaran::ebpf::has_tcx() {
        attach_filter(netns, device, way, &program)?;
        return Ok(program);
    }
    let attributes = [
        u32::try_from(program.as_raw_fd())?,
        0,
        way as u32,
        BPF_F_BEFORE,
    ];
    netns.run(|| {
        let mut attributes = attributes;
        attributes[1] = u32::try_from(index(device)?)?;
        bpf(BPF_LINK_CREATE, &attributes)
    })?
}

fn load(kind: u32, code: &[u64]) -> Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = vec![kind, u32::try_from(code.len()).context("a short program")?];
    attributes.extend(halves(code.as_ptr() as u64));
    attributes.extend(halves(license.as_ptr() as u64));
    bpf(BPF_PROG_LOAD, &attributes)
}

/// Frames that a device receives without a sender: the kernel makes them for an XDP program, which passes them
/// (Documentation/bpf/bpf_prog_run.rst, live frames).
#[derive(Debug)]
pub struct LiveFrames {
    program: OwnedFd,
    frame: Vec<u8>,
    ifindex: u32,
}

impl LiveFrames {
    /// For a device of a namespace.
    ///
    /// # Errors
    ///
    /// There is no such device, or the kernel does not take the program (Linux 5.18).
    pub fn on(netns: &Netns, device: &str, frame: Vec<u8>) -> Result<Self> {
        Ok(Self {
            program: load(BPF_PROG_TYPE_XDP, &rewriter(&frame))?,
            frame,
            ifindex: u32::try_from(netns.run(|| index(device))??)?,
        })
    }

    /// Lets the device receive so many, in the batches of a card's driver (64), on the calling thread, which is in its namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not.
    pub fn receive(&self, frames: u32) -> Result<()> {
        let length = u32::try_from(self.frame.len())?;
        // `struct xdp_md`: data, its end, metadata, ingress, queue, egress.
        let context = [0, length, 0, self.ifindex, 0, 0];
        let mut attributes = vec![u32::try_from(self.program.as_raw_fd())?, 0, length, 0];
        attributes.extend(halves(self.frame.as_ptr() as u64));
        attributes.extend([0, 0, frames, 0]);
        attributes.extend([u32::try_from(size_of_val(&context))?, 0]);
        attributes.extend(halves(context.as_ptr() as u64));
        attributes.extend([0, 0, BPF_F_TEST_XDP_LIVE_FRAMES, 0, 0]);
        match call(BPF_PROG_TEST_RUN, &attributes) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("let a device receive frames"),
        }
    }
}

/// How much of a frame is written anew each time: the Ethernet header and all of the IPv4 header.
const REWRITTEN: usize = 40;

/// Passes frames, whose memory the kernel uses again and again, with what a router changes in them as it was.
fn rewriter(frame: &[u8]) -> Vec<u64> {
    const PASS: i32 = 2;
    let words = frame[..REWRITTEN.min(frame.len())].chunks_exact(8);
    let stores = words.zip((0_i16..).step_by(8)).flat_map(|(word, at)| {
        let [low, high] = [0, 4].map(|at| [word[at], word[at + 1], word[at + 2], word[at + 3]]);
        [
            one(0x18, 5, 0, 0, i32::from_le_bytes(low)), // r5 = eight bytes
            one(0, 0, 0, 0, i32::from_le_bytes(high)),   // (second half)
            one(0x7b, 2, 5, at, 0),                      // data[at] = r5
        ]
    });
    let stores: Vec<u64> = stores.collect();
    let past = i16::try_from(stores.len()).unwrap_or(0);
    let begin = [
        one(0x61, 2, 1, 0, 0),    // r2 = data
        one(0x61, 3, 1, 4, 0),    // r3 = its end
        one(0xbf, 4, 2, 0, 0),    // r4 = data
        one(0x07, 4, 0, 0, 40),   // r4 += REWRITTEN
        one(0x2d, 4, 3, past, 0), // if r4 > r3 goto end
    ];
    let end = [one(0xb7, 0, 0, 0, PASS), one(0x95, 0, 0, 0, 0)];
    [&begin[..], &stores, &end].concat()
}

/// The same as a filter, which may do more with a packet than pass or drop it; until [`detach_filters`].
///
/// # Errors
///
/// When the kernel does not take it.
pub fn filter(netns: &Netns, device: &str, way: Way, code: &[u64]) -> Result<()> {
    attach_filter(netns, device, way, &load(BPF_PROG_TYPE_SCHED_CLS, code)?)
}

/// Takes all filters from a device.
///
/// # Errors
///
/// When `tc` fails.
pub fn detach_filters(netns: &Netns, device: &str, way: Way) -> Result<()> {
    let arguments = ["filter", "del", "dev", device, way.name()];
    netns.command("tc", &arguments).map(drop)
}

/// A TC program that does nothing and returns this.
///
/// # Errors
///
/// When the kernel does not take it.
pub fn nothing(returned: i32) -> Result<OwnedFd> {
    let code = [one(0xb7, 0, 0, 0, returned), one(0x95, 0, 0, 0, 0)];
    load(BPF_PROG_TYPE_SCHED_CLS, &code)
}

/// What one run of a program came to.
#[derive(Debug, Clone, Copy)]
pub struct TestRun {
    /// What it returned.
    pub returned: i32,
    /// How long it took.
    pub nanoseconds: u32,
}

/// Runs a TC program once, on a packet of its own.
///
/// # Errors
///
/// When the kernel does not.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> Result<TestRun> {
    let mut attributes = [0_u32; 32];
    attributes[0] = u32::try_from(program.as_raw_fd())?;
    attributes[2] = u32::try_from(frame.len())?;
    attributes[4..6].copy_from_slice(&halves(frame.as_ptr() as u64));
    // `repeat`
    attributes[8] = 1;
    match call_with(BPF_PROG_TEST_RUN, &mut attributes) {
        0 => Ok(TestRun {
            returned: attributes[1].cast_signed(),
            nanoseconds: attributes[9],
        }),
        _ => Err(std::io::Error::last_os_error()).context("run a program"),
    }
}

/// As a filter of a clsact qdisc, which stays as long as the device.
fn attach_filter(netns: &Netns, device: &str, way: Way, program: &OwnedFd) -> Result<()> {
    let path = format!("/sys/fs/bpf/{}-{device}", netns.name());
    let name = std::ffi::CString::new(path.as_str()).context("a path")?;
    let mut attributes = halves(name.as_ptr() as u64).to_vec();
    attributes.push(u32::try_from(program.as_raw_fd())?);
    if call(BPF_OBJ_PIN, &attributes) < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("pin {path}"));
    }
    let way = way.name();
    let attached = netns
        .command("tc", &["qdisc", "replace", "dev", device, "clsact"])
        .and_then(|_| {
            let filter = format!("filter add dev {device} {way} bpf direct-action pinned {path}");
            netns.command("tc", &filter.split(' ').collect::<Vec<_>>())
        });
    std::fs::remove_file(&path).with_context(|| format!("unpin {path}"))?;
    attached.map(drop)
}

/// How many programs, maps and links the machine has.
///
/// # Errors
///
/// When they can't be counted (root).
pub fn objects() -> Result<[u64; 3]> {
    Ok([
        count(BPF_PROG_GET_NEXT_ID)?,
        count(BPF_MAP_GET_NEXT_ID)?,
        count(BPF_LINK_GET_NEXT_ID)?,
    ])
}

/// Goes from each number to the next one in use.
fn count(next: i64) -> Result<u64> {
    let mut attributes = [0_u32; 32];
    let mut count = 0;
    loop {
        if call_with(next, &mut attributes) < 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(count),
                _ => Err(error).context("count BPF objects"),
            };
        }
        count += 1;
        // `start_id`, which `next_id` follows.
        attributes[0] = attributes[1];
    }
}

/// A device's index in the calling thread's namespace.
///
/// # Errors
///
/// When there is none of this name.
pub fn index(device: &str) -> Result<i32> {
    let index = if_nametoindex(device).with_context(|| format!("look up {device}"))?;
    Ok(i32::try_from(index)?)
}

/// Counts everything, and takes it, for [`filter`]: the kernel calls that no drop.
#[must_use]
pub fn taker(counter: i32) -> Vec<u64> {
    const STOLEN: i32 = 4;
    vec![
        one(0x62, 10, 0, -4, 0),     // key = 0
        one(0xbf, 2, 10, 0, 0),      // r2 = r10
        one(0x07, 2, 0, 0, -4),      // r2 = &key
        one(0x18, 1, 1, 0, counter), // r1 = the map
        0,                           // (second half)
        one(0x85, 0, 0, 0, 1),       // r0 = bpf_map_lookup_elem(r1, r2)
        one(0x15, 0, 0, 2, 0),       // if r0 == 0 goto end
        one(0xb7, 1, 0, 0, 1),       // r1 = 1
        one(0xdb, 0, 1, 0, 0),       // *r0 += r1, atomically
        one(0xb7, 0, 0, 0, STOLEN),  // end: r0 = stolen
        one(0x95, 0, 0, 0, 0),       // return
    ]
}

/// A counter for a program: an array of one 64-bit number.
#[derive(Debug)]
pub struct Counter(OwnedFd);

impl Counter {
    /// Makes it, at zero.
    ///
    /// # Errors
    ///
    /// When the kernel does not.
    pub fn new() -> Result<Self> {
        Ok(Self(bpf(BPF_MAP_CREATE, &[BPF_MAP_TYPE_ARRAY, 4, 8, 1])?))
    }

    /// Its descriptor, for an instruction.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// What it says.
    ///
    /// # Errors
    ///
    /// When it can't be read.
    pub fn get(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attributes = vec![u32::try_from(self.descriptor())?, 0];
        attributes.extend(halves(std::ptr::from_ref(&key) as u64));
        attributes.extend(halves(std::ptr::from_mut(&mut value) as u64));
        match call(BPF_MAP_LOOKUP_ELEM, &attributes) {
            0 => Ok(value),
            _ => Err(std::io::Error::last_os_error()).context("read a counter"),
        }
    }
}

/// A 64-bit attribute as two of 32 bits, on a little-endian machine.
fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_le_bytes();
    let half =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [half(0), half(4)]
}

fn bpf(command: i64, attributes: &[u32]) -> Result<OwnedFd> {
    let result = call(command, attributes);
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error).with_context(|| format!("bpf command {command}"));
    }
    let descriptor = i32::try_from(result).context("a descriptor")?;
    // SAFETY: these commands return a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call(command: i64, attributes: &[u32]) -> i64 {
    // What is not set must be zero.
    let mut all = [0_u32; 32];
    all[..attributes.len()].copy_from_slice(attributes);
    call_with(command, &mut all)
}

fn call_with(command: i64, attributes: &mut [u32; 32]) -> i64 {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are of this size, and what they point to outlives the call.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) }
}

/// One instruction: code, target and source register, offset, constant.
#[must_use]
pub fn one(code: u8, target: u8, source: u8, offset: i16, constant: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = constant.to_le_bytes();
    u64::from_le_bytes([code, target | source << 4, low, high, a, b, c, d])
}
