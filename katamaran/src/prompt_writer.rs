//! Writes a message to a stream at once, from whichever task has it, without ever tearing it.
//!
//! A message goes to the kernel within [`PromptWriter::send`] itself: no hop to another task, no
//! await point at which a cancelled caller could leave half a message on the wire. What the stream
//! does not take immediately stays in a backlog that [`PromptWriter::drain`] writes, in order.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

/// Bytes that may wait for a peer that does not read.
const BACKLOG_LIMIT: usize = 64 << 20;

/// A shared writing end. See the module documentation.
pub(crate) struct PromptWriter<W> {
    state: Mutex<State<W>>,
    work: Notify,
}

struct State<W> {
    /// `None` once closed.
    io: Option<W>,
    backlog: BytesMut,
    flushed: bool,
    finishing: bool,
}

impl<W: AsyncWrite + Unpin> PromptWriter<W> {
    pub(crate) fn new(io: W) -> Self {
        Self {
            state: Mutex::new(State {
                io: Some(io),
                backlog: BytesMut::new(),
                flushed: true,
                finishing: false,
            }),
            work: Notify::new(),
        }
    }

    /// Writes `message`, after all earlier ones.
    ///
    /// # Errors
    /// The stream failed (it is of no use afterwards) or was closed, [`PromptWriter::finish`] was
    /// called, or the peer has not read for so long that the backlog is full.
    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        self.send_along(message, |_, _| ())
    }

    /// Writes `message` like [`PromptWriter::send`]. `prepare` gets the stream first, and how many bytes
    /// will be written ahead of the message.
    ///
    /// # Errors
    /// As [`PromptWriter::send`].
    pub(crate) fn send_along(
        &self,
        message: &[u8],
        prepare: impl FnOnce(&mut W, usize),
    ) -> io::Result<()> {
        let mut state = self.lock();
        let ahead = state.backlog.len();
        if ahead + message.len() > BACKLOG_LIMIT {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let finishing = state.finishing;
        match &mut state.io {
            Some(io) if !finishing => prepare(io, ahead),
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        let idle = state.backlog.is_empty() && state.flushed;
        state.backlog.extend_from_slice(message);
        state.flushed = false;
        if idle {
            // Nobody else waits for the stream now, so no waker of `drain` is displaced here.
            let polled = state.poll_empty(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(result) = polled {
                return result;
            }
            self.work.notify_one();
        }
        Ok(())
    }

    /// Asks for the end of the stream once everything sent so far is out; `drain` does it.
    pub(crate) fn finish(&self) {
        self.lock().finishing = true;
        self.work.notify_one();
    }

    /// Drops the stream at once, and what was not written yet with it.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.io = None;
        state.backlog = BytesMut::new();
        drop(state);
        self.work.notify_one();
    }

    /// Writes backlogs as the stream takes them, until [`PromptWriter::finish`] or
    /// [`PromptWriter::close`]. One task runs it.
    ///
    /// # Errors
    /// The stream failed.
    pub(crate) async fn drain(&self) -> io::Result<()> {
        loop {
            poll_fn(|cx| self.lock().poll_empty(cx)).await?;
            if self.lock().finishing {
                return poll_fn(|cx| self.lock().poll_shutdown(cx)).await;
            }
            if self.lock().io.is_none() {
                return Ok(());
            }
            self.work.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: AsyncWrite + Unpin> State<W> {
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else {
            return Poll::Ready(Ok(()));
        };
        while !self.backlog.is_empty() {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, &self.backlog))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.backlog.advance(written);
        }
        if !self.flushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn messages_are_whole_and_in_order_through_a_narrow_stream() {
        let (near, mut far) = tokio::io::duplex(7);
        let writer = PromptWriter::new(near);
        let mut expected = Vec::new();
        for n in 0..200_u32 {
            let message = format!("message {n};");
            expected.extend_from_slice(message.as_bytes());
            writer.send(message.as_bytes()).unwrap();
        }
        writer.finish();
        let mut received = Vec::new();
        let (drained, read) = tokio::join!(writer.drain(), far.read_to_end(&mut received));
        drained.unwrap();
        read.unwrap();
        assert_eq!(received, expected);
    }

    #[tokio::test]
    async fn a_message_is_on_the_wire_when_send_returns() {
        let (near, mut far) = tokio::io::duplex(64);
        let writer = PromptWriter::new(near);
        writer.send(b"now").unwrap();
        let mut received = [0; 3];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"now");
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_cannot_make_the_backlog_grow_without_end() {
        let (near, _far) = tokio::io::duplex(1);
        let writer = PromptWriter::new(near);
        let megabyte = vec![0; 1 << 20];
        let refused = (0..80).find_map(|_| writer.send(&megabyte).err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::QuotaExceeded);
    }
}
