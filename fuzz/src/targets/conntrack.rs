//! Entries of connection tracking: as the kernel lists them, and as the other node sends them.

use katamaran::conntrack::Entry;
use katamaran::conntrack::fuzzing::{concerns, messages, parse};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "conntrack",
    run,
    base: 64 << 10,
    per_byte: 128,
};

/// Netlink's header and the address family's.
const HEADERS: usize = 16 + 4;

fn run(bytes: &[u8]) {
    if let Some(entry) = parse(bytes) {
        for address in [entry.original.source, entry.reply.destination] {
            assert!(concerns(bytes, &[address]), "{entry:?}");
        }
        asked(&entry);
    }
    if let Ok(entry) = serde_json::from_slice::<Entry>(bytes) {
        asked(&entry);
    }
}

/// What the kernel is asked about an entry is whole, and about that entry.
fn asked(entry: &Entry) {
    let messages = messages(entry);
    for message in &messages {
        let length = u32::try_from(message.len()).expect("a message is short");
        assert_eq!(message[..4], length.to_ne_bytes());
        assert!(message.len() >= HEADERS && message.len() % 4 == 0);
    }
    if speaks_one_family(entry) {
        let created = &messages[0][16..];
        let read = parse(created).expect("what is written can be read");
        assert_eq!(read.flow(), entry.flow());
    }
}

/// The kernel has no entry of two families, but a peer can say so.
fn speaks_one_family(entry: &Entry) -> bool {
    let tuple = &entry.original;
    tuple.source.is_ipv4() == tuple.destination.is_ipv4()
}
