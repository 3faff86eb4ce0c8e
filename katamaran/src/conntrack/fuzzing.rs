//! Messages without a kernel behind them, for the fuzz targets.

use std::net::IpAddr;

use super::Entry;
use super::message::{self, Message};

/// The entry in a message's payload.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Entry> {
    message::parse(payload)
}

/// Whether an address of the entry is one of these.
#[must_use]
pub fn concerns(payload: &[u8], addresses: &[IpAddr]) -> bool {
    message::concerns(payload, addresses)
}

/// Everything that the kernel can be asked to do with an entry, to create it first.
#[must_use]
pub fn messages(entry: &Entry) -> Vec<Vec<u8>> {
    [
        Message::create(0, entry, entry.possible_helper()),
        Message::update(0, entry, entry),
        Message::liberal(0, &entry.flow(), true),
        Message::assume_open(0, entry),
    ]
    .map(|message| message.numbered(1))
    .into()
}
