//! Frames from the copy ring, made whole.

use aya::Ebpf;
use aya::maps::{Array, MapData};
use katamaran_common::layout::{COPY_SLOTS, CopySlot};
use katamaran_common::names;

use crate::frame::complete_checksum;

use super::error::EbpfError;
use super::object;

/// A frame that was passed to the tap while the copy ring was on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedFrame {
    /// Running number since arming, from 1.
    pub number: u64,
    /// Length of the frame as it was, bytes.
    pub length: u32,
    /// Segment size; not 0 for a super-packet, which is not one frame.
    pub gso_size: u32,
    /// The frame from its Ethernet header, or as much as fits 2048 bytes. Its TCP or UDP checksum is
    /// the one it has on a wire: what was left to the hardware is filled in.
    pub bytes: Vec<u8>,
}

impl CopiedFrame {
    /// Whether `bytes` is the one whole frame that a guest can be given.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.gso_size == 0 && usize::try_from(self.length).is_ok_and(|n| n == self.bytes.len())
    }
}

pub(super) struct CopyMap {
    copies: Array<MapData, CopySlot>,
}

impl CopyMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            copies: object::map(ebpf, names::MAP_COPIES)?,
        })
    }

    /// What the ring holds, oldest first.
    pub(super) fn read(&self) -> Result<Vec<CopiedFrame>, EbpfError> {
        let mut frames = Vec::new();
        for index in 0..COPY_SLOTS {
            let slot = self
                .copies
                .get(&index, 0)
                .map_err(EbpfError::map("read", names::MAP_COPIES))?;
            if slot.number == 0 {
                continue;
            }
            let captured = usize::try_from(slot.captured)
                .unwrap_or(0)
                .min(slot.bytes.len());
            let mut frame = CopiedFrame {
                number: slot.number,
                length: slot.length,
                gso_size: slot.gso_size,
                bytes: slot.bytes[..captured].to_vec(),
            };
            if frame.is_whole() {
                complete_checksum(&mut frame.bytes);
            }
            frames.push(frame);
        }
        frames.sort_by_key(|frame| frame.number);
        Ok(frames)
    }
}
