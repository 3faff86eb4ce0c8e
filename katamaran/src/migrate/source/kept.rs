//! What was read out of the tap of a VM that stands still: in no ring any more, and kept until the VM runs somewhere.

use std::sync::{Arc, Mutex};

use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::WireFrame;
use crate::migrate::tap_watch::lock;
use crate::net::tapfd::{TapFrame, TapQueues};

/// More than any ring holds that we lengthen.
const FRAMES_MAX: usize = 200_000;

/// Shared by those who recover, and by an abort.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Option<Tapped>>>);

/// A tap that nobody else reads, and what was in it.
#[derive(Debug)]
pub(crate) struct Tapped {
    queues: Arc<TapQueues>,
    /// In their order.
    pub(crate) frames: Vec<WireFrame>,
    /// Read by the stopped QEMU ahead of them: where that goes on, its VM gets it.
    pub(crate) swallowed: Option<WireFrame>,
}

impl Kept {
    /// From now on the tap is read here.
    pub(crate) fn begin(&self, queues: &Arc<TapQueues>) {
        lock(&self.0).get_or_insert_with(|| Tapped {
            queues: Arc::clone(queues),
            frames: Vec::new(),
            swallowed: None,
        });
    }

    pub(crate) fn has_begun(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Reads what is in the tap's ring, and keeps it.
    pub(crate) fn read(&self) -> Result<Vec<TapFrame>, MigrateError> {
        let mut tapped = lock(&self.0);
        let Some(tapped) = tapped.as_mut() else {
            return Ok(Vec::new());
        };
        let mut unread = Vec::new();
        let read = tapped.queues.read_into(&mut unread, FRAMES_MAX);
        tapped.frames.extend(unread.iter().map(WireFrame::from));
        read.doing("read what QEMU left in the tap")?;
        Ok(unread)
    }

    pub(crate) fn note_swallowed(&self, frame: &WireFrame) {
        if let Some(tapped) = lock(&self.0).as_mut() {
            tapped.swallowed = Some(frame.clone());
        }
    }

    /// For the VM that goes on here.
    pub(crate) fn take(&self) -> Option<Tapped> {
        lock(&self.0).take()
    }
}
