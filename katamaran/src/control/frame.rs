//! Frames: a length (32 bits, big-endian, of the body alone) and a body of JSON.

use std::io;

use bytes::{Buf, BytesMut};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest body, in bytes.
pub const FRAME_LIMIT: usize = 1 << 20;

const HEADER: usize = 4;

/// A frame could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body is longer than both sides allow. Found before anything is allocated for it.
    #[error("frame of {length} bytes, more than {FRAME_LIMIT}{}", stranger(*.length))]
    TooLong { length: usize },

    /// A frame without a body, which nobody sends.
    #[error("empty frame")]
    Empty,

    /// The body is not the JSON that is expected.
    #[error("frame body is not a message")]
    NotAMessage { source: serde_json::Error },

    /// The stream ended inside a frame.
    #[error("stream ended after {got} bytes of a frame")]
    Truncated { got: usize },

    /// A reply to a request that was never made.
    #[error("reply to request {id}, which was never made")]
    StrayReply { id: u64 },

    /// A message that only the other role sends.
    #[error("{kind} from a peer that may not send one")]
    WrongRole { kind: &'static str },

    /// Reading failed.
    #[error("read a frame")]
    Read { source: io::Error },
}

/// A length that is text was none: something else talks.
fn stranger(length: usize) -> String {
    let bytes = u32::try_from(length).unwrap_or(0).to_be_bytes();
    match bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        true => format!(
            " (not a katamaran peer: it opened with \"{}\")",
            bytes.escape_ascii()
        ),
        false => String::new(),
    }
}

/// The bytes of a frame around `body`.
pub(super) fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, body).map_err(|source| FrameError::NotAMessage { source })?;
    let length = frame.len() - HEADER;
    let Some(header) = u32::try_from(length).ok().filter(|_| length <= FRAME_LIMIT) else {
        return Err(FrameError::TooLong { length });
    };
    frame[..HEADER].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// Splits a stream into frame bodies.
pub(super) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::with_capacity(16 << 10),
        }
    }

    /// The next body, or `None` where the stream ends between frames.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, FrameError> {
        loop {
            let missing = match self.length()? {
                Some(length) if self.buffer.len() >= HEADER + length => {
                    self.buffer.advance(HEADER);
                    return Ok(Some(self.buffer.split_to(length)));
                }
                Some(length) => HEADER + length - self.buffer.len(),
                None => HEADER,
            };
            self.buffer.reserve(missing);
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => {
                    return Err(FrameError::Truncated {
                        got: self.buffer.len(),
                    });
                }
                Ok(_) => {}
                Err(source) => return Err(FrameError::Read { source }),
            }
        }
    }

    /// The length of the body that is coming, once its header is here.
    fn length(&self) -> Result<Option<usize>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        match usize::try_from(u32::from_be_bytes(*header)) {
            Ok(0) => Err(FrameError::Empty),
            Ok(length) if length <= FRAME_LIMIT => Ok(Some(length)),
            Ok(length) => Err(FrameError::TooLong { length }),
            Err(_too_long) => Err(FrameError::TooLong { length: usize::MAX }),
        }
    }
}

/// The bodies of the frames in `stream`, and why they end, if not where the stream does.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) async fn read_all(stream: impl AsyncRead + Unpin) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut reader = FrameReader::new(stream);
    let mut bodies = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(body)) => bodies.push(body.to_vec()),
            Ok(None) => return (bodies, None),
            Err(error) => return (bodies, Some(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_frame_is_a_big_endian_length_and_json() {
        assert_eq!(encode(&"hi").unwrap(), b"\0\0\0\x04\"hi\"");
    }

    #[tokio::test]
    async fn a_frame_survives_arriving_byte_by_byte_and_cancelled_reads() {
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let mut reader = FrameReader::new(far);
        for byte in encode(&"slow").unwrap() {
            let mut read = Box::pin(reader.next());
            assert!(futures_util::poll!(&mut read).is_pending());
            drop(read);
            near.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(reader.next().await.unwrap().unwrap(), &b"\"slow\""[..]);
        drop(near);
        assert!(reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_peer_that_speaks_another_protocol_is_quoted() {
        for (opening, quoted) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], Some("\"HTTP\"")),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", Some("\"SSH-\"")),
            (b"220 mail.example.org ESMTP\r\n", Some("\"220 \"")),
            // An alert of TLS.
            (b"\x15\x03\x03\x00\x02\x02\x46", None),
            (b"\xff\xff\xff\xff", None),
        ] {
            let (bodies, error) = read_all(opening).await;
            let told = error.unwrap().to_string();
            assert!(
                bodies.is_empty() && told.contains("more than 1048576"),
                "{told}"
            );
            assert_eq!(
                told.contains("not a katamaran peer"),
                quoted.is_some(),
                "{told}"
            );
            assert!(quoted.is_none_or(|quoted| told.contains(quoted)), "{told}");
        }
    }

    #[tokio::test]
    async fn an_oversized_length_is_refused_without_reading_on() {
        let (bodies, error) = read_all(&b"GET / HTTP/1.1\r\n\r\n"[..]).await;
        assert!(bodies.is_empty());
        assert!(matches!(
            error,
            Some(FrameError::TooLong {
                length: 0x4745_5420
            })
        ));
        assert!(matches!(
            encode(&"x".repeat(FRAME_LIMIT)),
            Err(FrameError::TooLong { length }) if length == FRAME_LIMIT + 2
        ));
        let largest = encode(&"x".repeat(FRAME_LIMIT - 2)).unwrap();
        let (bodies, error) = read_all(&largest[..]).await;
        assert!(error.is_none() && bodies[0].len() == FRAME_LIMIT);
    }

    #[tokio::test]
    async fn empty_and_truncated_frames_are_errors() {
        assert!(matches!(
            read_all(&[0; 4][..]).await.1,
            Some(FrameError::Empty)
        ));
        assert!(matches!(
            read_all(&[0, 0, 0, 9, 1][..]).await.1,
            Some(FrameError::Truncated { got: 5 })
        ));
        assert!(matches!(
            read_all(&[0][..]).await.1,
            Some(FrameError::Truncated { got: 1 })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_sequence_of_texts_survives(texts: Vec<String>) {
            let bytes: Vec<u8> = texts.iter().flat_map(|text| encode(text).unwrap()).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (bodies, error) = runtime.block_on(read_all(&bytes[..]));
            prop_assert!(error.is_none());
            let read: Vec<String> =
                bodies.iter().map(|body| serde_json::from_slice(body).unwrap()).collect();
            prop_assert_eq!(read, texts);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(read_all(&bytes[..]));
        }
    }
}
