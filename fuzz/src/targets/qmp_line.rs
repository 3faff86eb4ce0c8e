//! Lines of a monitor, however the stream is cut into reads.

use katamaran::qmp::CloseReason;
use katamaran::qmp::fuzzing::lines;

use super::{Target, block_on};
use crate::steps::Steps;

pub(super) const TARGET: Target = Target {
    name: "qmp-line",
    run,
    base: 128 << 10,
    per_byte: 16,
};

fn run(bytes: &[u8]) {
    let Some((stream, io)) = Steps::of(bytes) else {
        return;
    };
    let (found, end) = block_on(lines(io));
    // What follows the last newline is no line.
    let mut wanted: Vec<&[u8]> = stream.split(|byte| *byte == b'\n').collect();
    let rest = wanted.pop().unwrap_or_default();
    let wanted = wanted
        .into_iter()
        .map(<[u8]>::trim_ascii_end)
        .filter(|line| !line.is_empty());
    assert!(wanted.eq(found.iter()), "{found:?}");
    match end {
        CloseReason::Eof => assert!(rest.is_empty()),
        CloseReason::Read(_) => assert!(!rest.is_empty()),
        other => panic!("reading from memory failed: {other}"),
    }
}
