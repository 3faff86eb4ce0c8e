//! The first bytes of a connection, of whoever connects.

use std::time::Duration;

use katamaran::control::{PREAMBLE_VERSION, Preamble, PreambleError};

use super::{Target, block_on};
use crate::steps::Steps;

pub(super) const TARGET: Target = Target {
    name: "preamble",
    run,
    // The runtime makes room for its timers at the first deadline.
    base: 64 << 10,
    per_byte: 0,
};

const LENGTH: usize = 24;
const SOON: Duration = Duration::from_secs(1);

fn run(bytes: &[u8]) {
    let Some((stream, mut io)) = Steps::of(bytes) else {
        return;
    };
    let magic = stream.starts_with(b"katamarn");
    match block_on(Preamble::read(&mut io, SOON)) {
        Ok(preamble) => {
            let mut written = Vec::new();
            block_on(preamble.write(&mut written, SOON)).expect("memory takes it");
            assert_eq!(written, stream[..LENGTH]);
        }
        Err(PreambleError::NotKatamaran { start }) => {
            assert!(!magic && stream.starts_with(&start));
        }
        Err(PreambleError::Version { offered }) => {
            assert!(magic && offered != PREAMBLE_VERSION);
            assert_eq!(stream[8..10], offered.to_be_bytes());
        }
        Err(PreambleError::Kind { kind }) => assert_eq!(stream[10], kind),
        Err(PreambleError::Reserved { value }) => {
            assert!(value != 0 && stream[11] == value);
        }
        Err(PreambleError::Io { .. }) => assert!(stream.len() < LENGTH),
        Err(PreambleError::Deadline { .. }) => panic!("the end was overheard"),
    }
}
