//! Moves the bytes of one stream, both ways.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::{Direction, RelayError};
use super::governor::Governor;
use super::status::RelayStatus;
use crate::stream::ByteStream;

/// Bytes moved at once. Written while they are still in the processor's cache: four times as many
/// were measured to cost a third more processor time per byte.
const CHUNK: usize = 128 << 10;

/// Joins `source_side` and `destination_side` until both directions have ended.
///
/// # Errors
/// The first failure of either direction. Both connections are closed on return.
///
/// # Cancel safety
/// Dropping the future cuts the stream.
pub(super) async fn join(
    stream: u32,
    source_side: impl ByteStream,
    destination_side: impl ByteStream,
    governor: &Governor,
    status: &RelayStatus,
) -> Result<(), RelayError> {
    let (source_read, source_write) = tokio::io::split(source_side);
    let (destination_read, destination_write) = tokio::io::split(destination_side);
    let onward = Pump {
        stream,
        direction: Direction::ToDestination,
        status,
    };
    let back = Pump {
        stream,
        direction: Direction::ToSource,
        status,
    };
    let free = Governor::default();
    tokio::try_join!(
        onward.run(source_read, destination_write, governor),
        back.run(destination_read, source_write, &free),
    )?;
    Ok(())
}

struct Pump<'a> {
    stream: u32,
    direction: Direction,
    status: &'a RelayStatus,
}

impl Pump<'_> {
    async fn run(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        governor: &Governor,
    ) -> Result<(), RelayError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut grant = governor.grant(CHUNK).await;
            let read = tokio::select! {
                biased;
                // A grant ends with the pace it was made under, also while no byte comes.
                _ = grant.pace.changed() => continue,
                read = from.read(&mut chunk[..grant.bytes]) => read,
            };
            let read = read.map_err(|source| self.read_failed(source))?;
            if read == 0 {
                return to
                    .shutdown()
                    .await
                    .map_err(|source| self.write_failed(source));
            }
            governor.charge(read);
            let mut rest = &chunk[..read];
            while !rest.is_empty() {
                governor.pass().await;
                match to.write(rest).await {
                    Ok(0) => return Err(self.write_failed(std::io::ErrorKind::WriteZero.into())),
                    Ok(written) => {
                        self.status.count(self.direction, written);
                        rest = &rest[written..];
                    }
                    Err(source) => return Err(self.write_failed(source)),
                }
            }
            to.flush()
                .await
                .map_err(|source| self.write_failed(source))?;
        }
    }

    fn read_failed(&self, source: std::io::Error) -> RelayError {
        let Self {
            stream, direction, ..
        } = *self;
        RelayError::Read {
            stream,
            direction,
            source: Arc::new(source),
        }
    }

    fn write_failed(&self, source: std::io::Error) -> RelayError {
        let Self {
            stream, direction, ..
        } = *self;
        RelayError::Write {
            stream,
            direction,
            source: Arc::new(source),
        }
    }
}
