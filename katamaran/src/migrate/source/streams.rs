//! The sockets that the source's QEMU streams through, each stream a connection of its own to the destination.

use crate::control::Preamble;
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::node::{make_private, relay_directory};
use crate::migrate::report::Role;
use crate::relay::{Governor, SourceRelay, connector};
use crate::session_id::SessionId;

use super::arm::Armed;

/// Listens at `socket` in the session's directory; stream `n` of QEMU reaches the destination behind
/// `preamble(session, n)`. `doing` is for the error.
pub(super) fn open(
    armed: &Armed,
    session: SessionId,
    preamble: fn(SessionId, u32) -> Preamble,
    socket: &str,
    governor: Governor,
    doing: &'static str,
) -> Result<SourceRelay, MigrateError> {
    let dialer = armed.prepared.dialer.clone();
    let dial = connector(move |stream| {
        let dialer = dialer.clone();
        async move {
            dialer
                .dial(preamble(session, stream))
                .await
                .map_err(std::io::Error::other)
        }
    });
    let directory = relay_directory(session, Role::Source);
    if let Some(parent) = directory.parent() {
        make_private(parent)?;
    }
    SourceRelay::start(&directory, socket, dial, governor).doing(doing)
}
