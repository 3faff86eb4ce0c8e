//! Frames of a control session, however the stream is cut into reads.

use katamaran::control::fuzzing::{encode, frames};
use katamaran::control::{FRAME_LIMIT, FrameError};

use super::{Target, block_on};
use crate::steps::Steps;

pub(super) const TARGET: Target = Target {
    name: "frame",
    run,
    // A header may announce that much before anything of it has come.
    base: FRAME_LIMIT + (64 << 10),
    per_byte: 8,
};

const HEADER: usize = 4;

fn run(bytes: &[u8]) {
    let Some((stream, io)) = Steps::of(bytes) else {
        return;
    };
    let (bodies, end) = block_on(frames(io));
    let mut rest = stream;
    for body in &bodies {
        assert!(!body.is_empty() && body.len() <= FRAME_LIMIT);
        let (frame, after) = rest.split_at(HEADER + body.len());
        assert_eq!(announced(frame), Some(body.len()));
        assert_eq!(&frame[HEADER..], body);
        rest = after;
        survives(&String::from_utf8_lossy(body));
    }
    match end {
        None => assert!(rest.is_empty()),
        Some(FrameError::Empty) => assert_eq!(announced(rest), Some(0)),
        Some(FrameError::TooLong { length }) => {
            assert!(length > FRAME_LIMIT && announced(rest) == Some(length));
        }
        Some(FrameError::Truncated { got }) => assert_eq!(got, rest.len()),
        Some(other) => panic!("reading from memory failed: {other}"),
    }
}

/// The length that a header says.
fn announced(stream: &[u8]) -> Option<usize> {
    let header = stream.first_chunk::<HEADER>()?;
    usize::try_from(u32::from_be_bytes(*header)).ok()
}

/// What is sent is what arrives.
fn survives(text: &str) {
    let frame = match encode(&text) {
        Ok(frame) => frame,
        // Escapes make it longer than it is.
        Err(FrameError::TooLong { length }) => return assert!(length > FRAME_LIMIT),
        Err(other) => panic!("text can't be sent: {other}"),
    };
    let (bodies, end) = block_on(frames(&frame[..]));
    assert!(end.is_none(), "{end:?}");
    let arrived: Vec<String> = bodies
        .iter()
        .map(|body| serde_json::from_slice(body).expect("it was sent as JSON"))
        .collect();
    assert_eq!(arrived, [text]);
}
