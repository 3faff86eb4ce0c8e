//! The writing end of a monitor socket. Descriptors go along with the message that tells QEMU what
//! they are for.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::unix::OwnedWriteHalf;

/// Writes to QEMU.
#[derive(Debug)]
pub(super) struct MonitorWriter {
    socket: OwnedWriteHalf,
    /// Bytes that the socket has taken, ever.
    written: u64,
    /// Descriptors, each with the number of the byte that it goes along with.
    passing: VecDeque<(u64, OwnedFd)>,
}

impl MonitorWriter {
    pub(super) fn new(socket: OwnedWriteHalf) -> Self {
        Self {
            socket,
            written: 0,
            passing: VecDeque::new(),
        }
    }

    /// Passes `descriptor` (`SCM_RIGHTS`) with the byte that comes `ahead` bytes after those that were
    /// written so far.
    pub(super) fn pass(&mut self, descriptor: OwnedFd, ahead: usize) {
        let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
        self.passing
            .push_back((self.written.saturating_add(ahead), descriptor));
    }

    fn poll_pass(
        &self,
        cx: &mut Context<'_>,
        descriptor: &OwnedFd,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = self.socket.as_ref();
        let rights = [descriptor.as_raw_fd()];
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let sent = socket.try_io(Interest::WRITABLE, || {
                let sent = sendmsg::<()>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    &[ControlMessage::ScmRights(&rights)],
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                );
                sent.map_err(io::Error::from)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncWrite for MonitorWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let before = match self.passing.front() {
            Some((at, descriptor)) if *at == self.written => {
                let sent = ready!(self.poll_pass(cx, descriptor, bytes))?;
                self.passing.pop_front();
                self.written += u64::try_from(sent).unwrap_or(u64::MAX);
                return Poll::Ready(Ok(sent));
            }
            Some((at, _)) => usize::try_from(at - self.written).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let bytes = &bytes[..bytes.len().min(before)];
        let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.written += u64::try_from(sent).unwrap_or(u64::MAX);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::io::Read as _;
    use std::os::fd::FromRawFd as _;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use tokio::net::UnixStream;

    use super::*;
    use crate::prompt_writer::PromptWriter;

    /// What one read brings: its bytes, and the descriptor that came along.
    async fn receive(socket: &UnixStream) -> (String, Option<OwnedFd>) {
        let mut bytes = vec![0; 64 << 10];
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        loop {
            socket.readable().await.unwrap();
            let received = socket.try_io(Interest::READABLE, || {
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let message =
                    recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
                let descriptor = message.cmsgs()?.find_map(|part| match part {
                    ControlMessageOwned::ScmRights(fds) => {
                        // SAFETY: the kernel has just given us this descriptor.
                        Some(unsafe { OwnedFd::from_raw_fd(fds[0]) })
                    }
                    _ => None,
                });
                Ok((message.bytes, descriptor))
            });
            match received {
                Ok((length, descriptor)) => {
                    return (
                        String::from_utf8(bytes[..length].to_vec()).unwrap(),
                        descriptor,
                    );
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A descriptor that reads as `word`.
    fn readable(word: &str) -> OwnedFd {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut far, word.as_bytes()).unwrap();
        near.into()
    }

    fn text(descriptor: OwnedFd) -> String {
        let mut text = String::new();
        std::os::unix::net::UnixStream::from(descriptor)
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[tokio::test]
    async fn each_descriptor_arrives_with_the_first_byte_of_its_message() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_read, write) = near.into_split();
        let writer = PromptWriter::new(MonitorWriter::new(write));
        writer.send(b"plain;").unwrap();
        writer
            .send_along(b"first;", |io, ahead| io.pass(readable("1"), ahead))
            .unwrap();
        writer
            .send_along(b"second;", |io, ahead| io.pass(readable("2"), ahead))
            .unwrap();
        // The kernel ends a read behind a message that a descriptor came with.
        let (first, descriptor) = receive(&far).await;
        assert_eq!(
            (first.as_str(), text(descriptor.unwrap())),
            ("plain;first;", "1".into())
        );
        let (second, descriptor) = receive(&far).await;
        assert_eq!(
            (second.as_str(), text(descriptor.unwrap())),
            ("second;", "2".into())
        );
    }

    #[tokio::test]
    async fn a_descriptor_waits_behind_what_the_monitor_does_not_read() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_read, write) = near.into_split();
        let writer = PromptWriter::new(MonitorWriter::new(write));
        let long = vec![b'.'; 4 << 20];
        writer.send(&long).unwrap();
        writer
            .send_along(b"with;", |io, ahead| io.pass(readable("1"), ahead))
            .unwrap();
        writer.finish();
        let read = async {
            let mut dots = 0;
            loop {
                let (bytes, descriptor) = receive(&far).await;
                dots += bytes.bytes().filter(|byte| *byte == b'.').count();
                if let Some(descriptor) = descriptor {
                    break (dots, bytes.replace('.', ""), text(descriptor));
                }
            }
        };
        let (drained, read) = tokio::join!(writer.drain(), read);
        drained.unwrap();
        assert_eq!(read, (long.len(), "with;".into(), "1".into()));
    }
}
