//! Lines without a monitor behind them, for the fuzz targets.

use tokio::io::AsyncRead;

use super::error::CloseReason;
use super::line::LineReader;

/// The lines of `stream` that are not blank, and why they end.
pub async fn lines(stream: impl AsyncRead + Unpin) -> (Vec<Vec<u8>>, CloseReason) {
    let mut reader = LineReader::new(stream);
    let mut lines = Vec::new();
    loop {
        match reader.next().await {
            Ok(line) => lines.push(line.to_vec()),
            Err(why) => return (lines, why),
        }
    }
}
