//! The destination's answers.

use katamaran::migrate::message::Reply;

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "reply",
    run,
    base: 64 << 10,
    per_byte: 256,
};

fn run(bytes: &[u8]) {
    let Ok(reply) = serde_json::from_slice::<Reply>(bytes) else {
        return;
    };
    let text = serde_json::to_string(&reply).expect("an answer that came can go");
    let again: Reply = serde_json::from_str(&text).expect("what went can come");
    assert_eq!(again, reply);
}
