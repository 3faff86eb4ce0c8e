//! Puts packets into the tap of a VM that goes on at the source.

use std::time::{Duration, Instant};

use crate::ebpf::RetainedPacket;
use crate::migrate::error::chain;
use crate::net::packet::{FrameInjector, VnetHeader};
use crate::net::{NetError, NetNs};

/// Rounds while packets still go to the destination, at most.
pub(crate) const ROUNDS: usize = 50;
/// So few frames come in between two.
pub(crate) const FEW: u64 = 1;

/// How long the VM may take for one packet when its tap is full.
const ROOM: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);

/// The way into a tap. A VM that stands still reads nothing, and a tap holds 1000 packets where nobody has made its ring
/// longer: the VM goes on as soon as there is no room for more.
#[derive(Debug)]
pub(crate) struct PutBack<R> {
    injector: FrameInjector,
    resume: Option<R>,
}

impl<R: AsyncFnOnce() -> Result<(), String>> PutBack<R> {
    /// `resume` lets the VM go on.
    pub(crate) fn open(netns: &NetNs, tap: u32, resume: R) -> Result<Self, String> {
        // One for all frames: to close a packet socket takes the kernel some 10 ms.
        let injector = FrameInjector::open(netns, tap)
            .map_err(|e| format!("open the VM's tap: {}", chain(&e)))?;
        Ok(Self {
            injector,
            resume: Some(resume),
        })
    }

    /// One frame, as a tap or a packet socket tells it.
    pub(crate) async fn frame(&mut self, header: VnetHeader, frame: &[u8]) -> Result<(), String> {
        let end = Instant::now() + ROOM;
        loop {
            match self.injector.inject(header, frame) {
                Ok(()) => return Ok(()),
                Err(error @ NetError::NoRoom { .. }) => match self.resume.take() {
                    Some(resume) => resume().await?,
                    None if Instant::now() >= end => return Err(chain(&error)),
                    None => tokio::time::sleep(POLL).await,
                },
                Err(error) => return Err(chain(&error)),
            }
        }
    }

    /// What copies of redirected packets are on the wire. Returns how many frames that are.
    pub(crate) async fn all(
        &mut self,
        packets: impl Iterator<Item = RetainedPacket>,
    ) -> Result<u64, String> {
        let mut frames = 0;
        for packet in packets {
            frames += self.retained(packet).await?;
        }
        Ok(frames)
    }

    async fn retained(&mut self, packet: RetainedPacket) -> Result<u64, String> {
        let frames = packet.into_frames()?;
        for frame in &frames {
            self.frame(VnetHeader::default(), frame).await?;
        }
        Ok(frames.len() as u64)
    }
}
