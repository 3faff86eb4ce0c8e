//! A stream that gives its bytes bit by bit.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Each read gives `step` bytes at most.
pub(crate) struct Steps<'a> {
    rest: &'a [u8],
    step: usize,
}

impl<'a> Steps<'a> {
    /// The first byte says how long the steps are, the others are the stream.
    pub(crate) fn of(bytes: &'a [u8]) -> Option<(&'a [u8], Self)> {
        let (step, stream) = bytes.split_first()?;
        let step = usize::from(*step) + 1;
        Some((stream, Self { rest: stream, step }))
    }
}

impl AsyncRead for Steps<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.step.min(self.rest.len()).min(into.remaining());
        let (now, later) = self.rest.split_at(length);
        into.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}
