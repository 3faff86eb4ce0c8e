//! A connection to one export, for reading.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::error::NbdError;
use super::wire::{
    COMMAND_DISCONNECT, COMMAND_READ, FIXED_NEWSTYLE, INFO_BLOCK_SIZE, INFO_EXPORT, NO_ZEROES,
    OPTION_GO, OPTION_MAGIC, OPTION_REPLY_LIMIT, OPTION_REPLY_MAGIC, REPLY_ACK, REPLY_ERROR,
    REPLY_INFO, REPLY_MAGIC, REQUEST_MAGIC, SERVER_MAGIC,
};

/// Reads one export.
#[derive(Debug)]
pub struct Reader {
    io: UnixStream,
    size: u64,
    last_cookie: u64,
}

impl Reader {
    /// Opens `export` of the server at `socket`.
    ///
    /// # Errors
    /// Nobody listens there, it is no NBD server, or it has no such export.
    pub async fn open(socket: &Path, export: &str) -> Result<Self, NbdError> {
        let io = UnixStream::connect(socket)
            .await
            .map_err(|source| NbdError::Connect {
                path: socket.to_owned(),
                source,
            })?;
        Self::over(io, export).await
    }

    /// Opens `export` over a connection.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub async fn over(mut io: UnixStream, export: &str) -> Result<Self, NbdError> {
        if io.read_u64().await? != SERVER_MAGIC {
            return Err(NbdError::NotNbd {
                what: "it opens with something else",
            });
        }
        if io.read_u64().await? != OPTION_MAGIC {
            return Err(NbdError::NotNbd {
                what: "it has no options",
            });
        }
        let flags = io.read_u16().await?;
        if flags & FIXED_NEWSTYLE == 0 || flags & NO_ZEROES == 0 {
            return Err(NbdError::NotNbd {
                what: "it is an old one",
            });
        }
        let size = go(&mut io, export).await?;
        Ok(Self {
            io,
            size,
            last_cookie: 0,
        })
    }

    /// The size of the drive, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The server could not read, or the connection broke; after the latter the reader is of no use.
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the reader.
    pub async fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), NbdError> {
        let length = u32::try_from(buffer.len()).map_err(|_too_long| NbdError::OutOfStep)?;
        self.last_cookie += 1;
        let request = request(COMMAND_READ, self.last_cookie, offset, length);
        self.io.write_all(&request).await?;
        if self.io.read_u32().await? != REPLY_MAGIC {
            return Err(NbdError::OutOfStep);
        }
        let code = self.io.read_u32().await?;
        if self.io.read_u64().await? != self.last_cookie {
            return Err(NbdError::OutOfStep);
        }
        if code != 0 {
            return Err(NbdError::Read {
                offset,
                length,
                code,
            });
        }
        self.io.read_exact(buffer).await?;
        Ok(())
    }

    /// Says goodbye, so that the server does not take the end for an accident.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn close(mut self) -> Result<(), NbdError> {
        let request = request(COMMAND_DISCONNECT, self.last_cookie + 1, 0, 0);
        self.io.write_all(&request).await?;
        self.io.shutdown().await?;
        Ok(())
    }
}

/// Chooses the export and begins the transmission; returns the export's size.
async fn go(io: &mut UnixStream, export: &str) -> Result<u64, NbdError> {
    let refused = |reason: &str| NbdError::Refused {
        export: export.to_owned(),
        reason: reason.to_owned(),
    };
    let name_length = u32::try_from(export.len())
        .ok()
        .filter(|length| *length <= 4096)
        .ok_or_else(|| refused("its name is too long"))?;
    let mut option = Vec::with_capacity(64 + export.len());
    option.extend(u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    option.extend(OPTION_MAGIC.to_be_bytes());
    option.extend(OPTION_GO.to_be_bytes());
    // Name with its length, then one information request with their number.
    option.extend((4 + name_length + 2 + 2).to_be_bytes());
    option.extend(name_length.to_be_bytes());
    option.extend(export.as_bytes());
    option.extend(1_u16.to_be_bytes());
    option.extend(INFO_BLOCK_SIZE.to_be_bytes());
    io.write_all(&option).await?;

    let mut size = None;
    loop {
        if io.read_u64().await? != OPTION_REPLY_MAGIC || io.read_u32().await? != OPTION_GO {
            return Err(NbdError::OutOfStep);
        }
        let kind = io.read_u32().await?;
        let length = io.read_u32().await?;
        if length > OPTION_REPLY_LIMIT {
            return Err(NbdError::OutOfStep);
        }
        let mut data = Vec::new();
        (&mut *io)
            .take(length.into())
            .read_to_end(&mut data)
            .await?;
        match kind {
            REPLY_ACK => return size.ok_or_else(|| refused("it did not tell the size")),
            REPLY_INFO => size = export_size(&data).or(size),
            kind if kind & REPLY_ERROR != 0 => {
                let text = String::from_utf8_lossy(&data);
                return Err(refused(&format!("{text} (reply {kind:#x})")));
            }
            _ => {}
        }
    }
}

/// The size, if this information is about the export.
fn export_size(data: &[u8]) -> Option<u64> {
    let (kind, rest) = data.split_first_chunk::<2>()?;
    if u16::from_be_bytes(*kind) != INFO_EXPORT {
        return None;
    }
    Some(u64::from_be_bytes(*rest.first_chunk::<8>()?))
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    // Bytes 4 and 5: no flags.
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}
