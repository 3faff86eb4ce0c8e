//! Frames without a session around them, for the fuzz targets.

use serde::Serialize;
use tokio::io::AsyncRead;

use super::frame::{self, FrameError};

/// The bodies of the frames in `stream`, and why they end, if not where the stream does.
pub async fn frames(stream: impl AsyncRead + Unpin) -> (Vec<Vec<u8>>, Option<FrameError>) {
    frame::read_all(stream).await
}

/// The frame around `body`.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, FrameError> {
    frame::encode(body)
}
