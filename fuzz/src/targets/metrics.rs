//! A node's metrics file, which other programs could have written to.

use katamaran::metrics::fuzzing::{again, merged};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "metrics",
    run,
    base: 256 << 10,
    per_byte: 256,
};

fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let Ok(written) = again(text) else {
        return;
    };
    assert_eq!(again(&written).as_ref(), Ok(&written));
    merged(&written).expect("it has been read before");
}
