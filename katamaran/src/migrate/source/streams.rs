//! How streams of the source's QEMU reach the destination: each is a connection of its own to its port.

use crate::control::Preamble;
use crate::relay::{Connector, connector};
use crate::session_id::SessionId;

use super::arm::Armed;

/// Stream `n` reaches the destination behind `preamble(session, n)`.
pub(super) fn to_destination(
    armed: &Armed,
    session: SessionId,
    preamble: fn(SessionId, u32) -> Preamble,
) -> Connector {
    let dialer = armed.prepared.dialer.clone();
    connector(move |stream| {
        let dialer = dialer.clone();
        async move {
            dialer
                .dial(preamble(session, stream))
                .await
                .map_err(std::io::Error::other)
        }
    })
}
