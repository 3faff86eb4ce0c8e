//! What was redirected since the flip, kept at the source for a VM that goes on here after all.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, MapData, MapInfo, RingBuf};
use katamaran_common::layout::{Mode, Retained};
use katamaran_common::names;

use crate::frame::on_the_wire;
use crate::role::Role;
use crate::session_id::SessionId;

use super::bpffs;
use super::error::EbpfError;
use super::object::{self, Slot};
use super::sessions;

/// Bytes of the ring: 200,000 packets of up to 128 bytes (a record takes 160), more than the longest ring of a tap
/// holds, or 16,000 of 1500 bytes (2080).
pub(super) const RING_BYTES: u32 = 32 << 20;

/// More than a program takes for a packet.
const LONG_RUN: Duration = Duration::from_millis(5);

/// One packet that was redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedPacket {
    /// The frame as it came to the hook, from its Ethernet header; the checksum may be left to the device.
    pub frame: Vec<u8>,
    /// Segment size; not 0 for a super-packet.
    pub gso_size: u32,
}

impl RetainedPacket {
    /// What the VM is given: the frames that it would have been on a wire.
    ///
    /// # Errors
    /// It can't be cut.
    pub fn into_frames(self) -> Result<Vec<Vec<u8>>, String> {
        let length = self.frame.len();
        on_the_wire(self.frame, self.gso_size)
            .ok_or_else(|| format!("a super-packet of {length} bytes can't be cut"))
    }
}

/// The ring, and the switch that fills it.
pub(super) struct RetainedMap {
    ring: RingBuf<MapData>,
    on: Slot<u32>,
}

impl RetainedMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            ring: object::map(ebpf, names::MAP_RETAINED)?,
            on: object::map(ebpf, names::MAP_RETAINING)?,
        })
    }

    /// Starts with nothing, or stops; what is there stays until the next start.
    pub(super) fn switch(&mut self, on: bool) -> Result<(), EbpfError> {
        if on {
            while self.ring.next().is_some() {}
        }
        self.on
            .set(0, u32::from(on), 0)
            .map_err(EbpfError::map("write", names::MAP_RETAINING))
    }

    pub(super) fn next(&mut self) -> Option<RetainedPacket> {
        next(&mut self.ring)
    }
}

/// Takes out the oldest; what is no packet is left out.
fn next(ring: &mut RingBuf<MapData>) -> Option<RetainedPacket> {
    loop {
        let item = ring.next()?;
        if let Some(packet) = read(&item) {
            return Some(packet);
        }
    }
}

fn read(record: &[u8]) -> Option<RetainedPacket> {
    const HEAD: usize = size_of::<Retained>();
    let (head, bytes) = record.split_at_checked(HEAD)?;
    let word = |at: usize| Some(u32::from_ne_bytes(*head.get(at..)?.first_chunk()?));
    let length = usize::try_from(word(0)?).ok()?;
    Some(RetainedPacket {
        frame: [head.get(8..22)?, bytes.get(..length)?].concat(),
        gso_size: word(4)?,
    })
}

/// What a session whose process is gone has retained, and its redirect.
pub struct LeftBehind {
    ring: RingBuf<MapData>,
    mode: Array<MapData, u32>,
}

impl fmt::Debug for LeftBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeftBehind").finish_non_exhaustive()
    }
}

impl LeftBehind {
    /// Of this session; `None` where its hook redirects nothing, or is gone.
    ///
    /// # Errors
    /// When the pins can't be listed.
    pub fn find(session: SessionId) -> Result<Option<Self>, EbpfError> {
        for (found, path) in bpffs::role_directories()? {
            if found == session && path.ends_with(Role::Source.to_string()) {
                return Self::open(&path);
            }
        }
        Ok(None)
    }

    fn open(pins: &Path) -> Result<Option<Self>, EbpfError> {
        let (mut ring, mut mode) = (None, None);
        for id in sessions::maps_of(pins, names::PROGRAM_SOURCE)? {
            let name = MapInfo::from_id(id).ok();
            match name.as_ref().and_then(MapInfo::name_as_str) {
                Some(names::MAP_RETAINED) => ring = sessions::typed(id).ok(),
                Some(names::MAP_MODE) => mode = sessions::typed::<Array<_, u32>>(id).ok(),
                _ => {}
            }
        }
        let (Some(ring), Some(mode)) = (ring, mode) else {
            return Ok(None);
        };
        let redirects = mode.get(&0, 0).is_ok_and(|m| m == Mode::Redirect as u32);
        Ok(redirects.then_some(Self { ring, mode }))
    }

    /// Takes out the oldest packet.
    pub fn next_retained(&mut self) -> Option<RetainedPacket> {
        next(&mut self.ring)
    }

    /// Lets the VM's packets pass to its tap again.
    ///
    /// # Errors
    /// When the map can't be written.
    pub fn unflip(&mut self) -> Result<(), EbpfError> {
        self.mode
            .set(0, Mode::Count as u32, 0)
            .map_err(EbpfError::map("write", names::MAP_MODE))
    }
}

/// Returns once no program is at work that began before, and nothing that it passed is on its way to a device.
pub fn settle() {
    // Programs, and what follows them in the kernel's output path, run in read-side sections of RCU, and this waits for a grace
    // period (membarrier(2), kernel/sched/membarrier.c).
    // SAFETY: no memory is touched.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if waited != 0 {
        // Not with nohz_full. A run takes microseconds.
        std::thread::sleep(LONG_RUN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_frame_behind_its_head() {
        let mut record = Vec::new();
        record.extend(3u32.to_ne_bytes());
        record.extend(1448u32.to_ne_bytes());
        record.extend([7; 14]);
        record.extend([0, 0]);
        record.extend([1, 2, 3, 99, 99]);
        let packet = read(&record).unwrap();
        assert_eq!(packet.frame, [&[7; 14][..], &[1, 2, 3]].concat());
        assert_eq!(packet.gso_size, 1448);
        assert_eq!(read(&record[..26]), None, "it says more than is there");
        assert_eq!(read(&[]), None);
    }
}
