//! Reads lines with a cap on their length.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::error::CloseReason;

/// The longest line taken from QEMU. `query-qmp-schema` is about 200 KiB, a VM with a hundred drives less.
pub(super) const LINE_LIMIT: usize = 4 << 20;

/// Bytes of a bad line that an error shows.
const SHOWN: usize = 64;

/// Splits a stream into lines.
pub(super) struct LineReader<R> {
    io: R,
    buffer: BytesMut,
    searched: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::with_capacity(64 << 10),
            searched: 0,
        }
    }

    /// The next line that is not blank, without its end.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> Result<BytesMut, CloseReason> {
        loop {
            if let Some(found) = self.buffer[self.searched..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let mut line = self.buffer.split_to(self.searched + found);
                self.buffer.advance(1);
                self.searched = 0;
                line.truncate(line.trim_ascii_end().len());
                if line.is_empty() {
                    continue;
                }
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_LIMIT {
                return Err(CloseReason::LineTooLong {
                    limit: LINE_LIMIT,
                    start: start_of(&self.buffer),
                });
            }
            self.buffer.reserve(8 << 10);
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Err(CloseReason::Eof),
                Ok(0) => {
                    let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(CloseReason::Read(source));
                }
                Ok(_) => {}
                Err(source) => return Err(CloseReason::Read(source)),
            }
        }
    }

    /// What has arrived without making a line yet.
    pub(super) fn partial(&self) -> &[u8] {
        &self.buffer
    }
}

/// The first bytes of a line, quoted and escaped for a message.
pub(super) fn start_of(line: &[u8]) -> String {
    let shown = &line[..line.len().min(SHOWN)];
    let more = if line.len() > SHOWN { ".." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}
