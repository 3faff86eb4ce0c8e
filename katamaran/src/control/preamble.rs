//! The first bytes of every connection to the destination's port: 24, always.
//!
//! | offset | bytes | what |
//! | ---: | ---: | --- |
//! | 0 | 8 | `katamarn` |
//! | 8 | 2 | version of this layout, big-endian |
//! | 10 | 1 | kind: 1 control, 2 RAM, 3 NBD, 4 look |
//! | 11 | 1 | zero |
//! | 12 | 4 | index of the stream among those of its kind, big-endian |
//! | 16 | 8 | session id, big-endian |

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::session_id::SessionId;

/// The version of the layout above.
pub const PREAMBLE_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"katamarn";
const LENGTH: usize = 24;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// The control session; one per session.
    Control = 1,
    /// One connection of QEMU's migration.
    Ram = 2,
    /// One connection to the destination's NBD export.
    Nbd = 3,
    /// Somebody who asks before a migration, and begins none. Releases that do not know it close the
    /// connection and go on waiting.
    Look = 4,
}

/// Says which session a connection belongs to and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// What the connection is for.
    pub kind: StreamKind,
    /// The session.
    pub session: SessionId,
    /// Its number among the connections of its kind, from 0.
    pub index: u32,
}

/// A connection did not open as it should.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// It is something else that talks to this port.
    #[error("not a katamaran peer: it opened with \"{}\"", start.escape_ascii())]
    NotKatamaran { start: [u8; 8] },

    /// A release that lays the preamble out differently.
    #[error("preamble version {offered}, not {PREAMBLE_VERSION}")]
    Version { offered: u16 },

    /// A kind of connection that this release does not know.
    #[error("connection of unknown kind {kind}")]
    Kind { kind: u8 },

    /// A byte that must be zero is not.
    #[error("reserved byte of the preamble is {value}")]
    Reserved { value: u8 },

    /// It did not come in time.
    #[error("no preamble within {within:?}")]
    Deadline { within: Duration },

    /// The connection broke first.
    #[error("connection broke in the preamble")]
    Io { source: io::Error },
}

impl Preamble {
    /// The preamble of the control connection of `session`.
    #[must_use]
    pub fn control(session: SessionId) -> Self {
        Self {
            kind: StreamKind::Control,
            session,
            index: 0,
        }
    }

    /// The preamble of the RAM connection number `index` of `session`.
    #[must_use]
    pub fn ram(session: SessionId, index: u32) -> Self {
        Self {
            kind: StreamKind::Ram,
            session,
            index,
        }
    }

    /// The preamble of the NBD connection number `index` of `session`.
    #[must_use]
    pub fn nbd(session: SessionId, index: u32) -> Self {
        Self {
            kind: StreamKind::Nbd,
            session,
            index,
        }
    }

    /// The preamble of a connection that only asks.
    #[must_use]
    pub fn look(session: SessionId) -> Self {
        Self {
            kind: StreamKind::Look,
            session,
            index: 0,
        }
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`PreambleError::Deadline`], [`PreambleError::Io`].
    ///
    /// # Cancel safety
    /// Not cancel safe: give the connection up.
    pub async fn write(
        &self,
        io: &mut (impl AsyncWrite + Unpin),
        deadline: Duration,
    ) -> Result<(), PreambleError> {
        let bytes = self.encode();
        let write = async {
            io.write_all(&bytes).await?;
            io.flush().await
        };
        within(deadline, write).await
    }

    /// Receives one.
    ///
    /// # Errors
    /// [`PreambleError`]; what was read of the stream is lost.
    ///
    /// # Cancel safety
    /// Not cancel safe: give the connection up.
    pub async fn read(
        io: &mut (impl AsyncRead + Unpin),
        deadline: Duration,
    ) -> Result<Self, PreambleError> {
        let mut bytes = [0; LENGTH];
        let mut start = [0; MAGIC.len()];
        let read = async {
            // The magic alone first: most strangers are known by then, and may send no more.
            io.read_exact(&mut start).await?;
            if start == MAGIC {
                io.read_exact(&mut bytes[MAGIC.len()..]).await?;
            }
            Ok(())
        };
        within(deadline, read).await?;
        bytes[..MAGIC.len()].copy_from_slice(&start);
        Self::decode(&bytes)
    }

    fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&PREAMBLE_VERSION.to_be_bytes());
        bytes[10] = self.kind as u8;
        bytes[12..16].copy_from_slice(&self.index.to_be_bytes());
        bytes[16..].copy_from_slice(&self.session.0.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LENGTH]) -> Result<Self, PreambleError> {
        let [
            m0,
            m1,
            m2,
            m3,
            m4,
            m5,
            m6,
            m7,
            v0,
            v1,
            kind,
            reserved,
            i0,
            i1,
            i2,
            i3,
            id @ ..,
        ] = *bytes;
        let start = [m0, m1, m2, m3, m4, m5, m6, m7];
        if start != MAGIC {
            return Err(PreambleError::NotKatamaran { start });
        }
        let offered = u16::from_be_bytes([v0, v1]);
        if offered != PREAMBLE_VERSION {
            return Err(PreambleError::Version { offered });
        }
        let kind = match kind {
            1 => StreamKind::Control,
            2 => StreamKind::Ram,
            3 => StreamKind::Nbd,
            4 => StreamKind::Look,
            kind => return Err(PreambleError::Kind { kind }),
        };
        if reserved != 0 {
            return Err(PreambleError::Reserved { value: reserved });
        }
        let index = u32::from_be_bytes([i0, i1, i2, i3]);
        Ok(Self {
            kind,
            session: SessionId(u64::from_be_bytes(id)),
            index,
        })
    }
}

async fn within(
    deadline: Duration,
    work: impl Future<Output = io::Result<()>>,
) -> Result<(), PreambleError> {
    match timeout(deadline, work).await {
        Ok(done) => done.map_err(|source| PreambleError::Io { source }),
        Err(_elapsed) => Err(PreambleError::Deadline { within: deadline }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    fn golden() -> [u8; LENGTH] {
        *b"katamarn\x00\x01\x02\x00\x00\x00\x00\x07\x01\x23\x45\x67\x89\xab\xcd\xef"
    }

    async fn read(mut bytes: &[u8]) -> Result<Preamble, PreambleError> {
        Preamble::read(&mut bytes, SOON).await
    }

    #[tokio::test]
    async fn the_bytes_are_as_the_table_says() {
        let preamble = Preamble::ram(SessionId(0x0123_4567_89ab_cdef), 7);
        let mut bytes = Vec::new();
        preamble.write(&mut bytes, SOON).await.unwrap();
        assert_eq!(bytes, golden());
        assert_eq!(read(&bytes).await.unwrap(), preamble);
    }

    #[tokio::test]
    async fn each_deviation_has_its_own_error() {
        let with = |at: usize, value: u8| {
            let mut bytes = golden();
            bytes[at] = value;
            bytes
        };
        assert!(matches!(
            read(b"GET / HTTP/1.1\r\n").await,
            Err(PreambleError::NotKatamaran { start }) if &start == b"GET / HT"
        ));
        assert!(matches!(
            read(&with(9, 2)).await,
            Err(PreambleError::Version { offered: 2 })
        ));
        assert!(matches!(
            read(&with(10, 0)).await,
            Err(PreambleError::Kind { kind: 0 })
        ));
        assert!(matches!(
            read(&with(10, 9)).await,
            Err(PreambleError::Kind { kind: 9 })
        ));
        assert!(matches!(
            read(&with(11, 1)).await,
            Err(PreambleError::Reserved { value: 1 })
        ));
        assert!(matches!(
            read(&golden()[..20]).await,
            Err(PreambleError::Io { .. })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_says_nothing_is_given_up() {
        let (mut near, _far) = tokio::io::duplex(64);
        let error = Preamble::read(&mut near, SOON).await.unwrap_err();
        assert!(matches!(error, PreambleError::Deadline { within: SOON }));
    }
}
