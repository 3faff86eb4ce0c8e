//! What QEMU does for V's network: copies frames, with their virtio headers, between a node's tap and
//! V's own device.

use std::fs::File;
use std::io::{PipeWriter, Read as _, Write as _, pipe};
use std::os::fd::AsFd as _;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A running pump; stops when dropped.
pub(crate) struct Pump {
    /// Closing it stops the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    pub(crate) fn start(node: &File, guest: &File) -> Self {
        let (stopped, stop) = pipe().unwrap();
        let node = node.try_clone().unwrap();
        let guest = guest.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0u8; 128 * 1024];
            loop {
                let mut wait = [
                    PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                    PollFd::new(node.as_fd(), PollFlags::POLLIN),
                    PollFd::new(guest.as_fd(), PollFlags::POLLIN),
                ];
                poll(&mut wait, PollTimeout::NONE).unwrap();
                if wait[0].any() == Some(true) {
                    return;
                }
                copy(&node, &guest, &mut buffer);
                copy(&guest, &node, &mut buffer);
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

/// Copies some of what is there.
fn copy(mut from: &File, mut to: &File, buffer: &mut [u8]) {
    for _ in 0..64 {
        let Ok(length) = from.read(buffer) else {
            return;
        };
        if let Err(error) = to.write(&buffer[..length]) {
            println!("a device refused a frame of {length} bytes: {error}");
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}
