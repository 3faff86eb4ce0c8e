//! What this kernel makes of entries: some are added, looked for, relaxed and removed where nobody is disturbed.

use std::net::{IpAddr, Ipv4Addr};

use super::entry::{Entry, Tcp, Transport, Tuple, status, tcp_state};
use super::{Added, ConntrackError, Existing, News, Refusal, Table};

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// An entry that is not translated.
    pub plain: Result<(), Refusal>,
    /// One that is.
    pub translated: Result<(), Refusal>,
    /// The kernel tells of connections that begin.
    pub news: bool,
}

/// Tries it, and takes everything away again. Must be called on a thread in a network namespace that nobody else
/// uses.
///
/// # Errors
/// The kernel has no ctnetlink, or the caller not the right to use it.
pub fn try_entries() -> Result<Trial, ConntrackError> {
    let mut table = Table::open()?;
    table.probe()?;
    Ok(Trial {
        plain: try_one(&mut table, &entry(false))?,
        translated: try_one(&mut table, &entry(true))?,
        news: News::subscribe()?.is_some(),
    })
}

fn try_one(table: &mut Table, entry: &Entry) -> Result<Result<(), Refusal>, ConntrackError> {
    let flow = entry.flow();
    if let Some(Added::Refused(refusal)) = table
        .add(std::slice::from_ref(entry), Existing::Keep)?
        .pop()
    {
        return Ok(Err(refusal));
    }
    table.set_liberal(&[flow], true)?;
    table.remove(&[flow])?;
    Ok(Ok(()))
}

/// Between addresses that are for documents.
pub(crate) fn entry(translated: bool) -> Entry {
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
    const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
    let tuple = |from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)| Tuple {
        source: IpAddr::V4(from.0),
        destination: IpAddr::V4(to.0),
        protocol: 6,
        transport: Transport::Ports {
            source: from.1,
            destination: to.1,
        },
        zone: None,
    };
    let target = if translated { SERVICE } else { SERVER };
    let translation = if translated { status::DST_NAT } else { 0 };
    Entry {
        original: tuple((CLIENT, 40_000), (target, 80)),
        reply: tuple((SERVER, 80), (CLIENT, 40_000)),
        zone: 0,
        status: status::CONFIRMED | status::SEEN_REPLY | status::ASSURED | translation,
        timeout: 60,
        mark: 0,
        labels: None,
        tcp: Some(Tcp {
            state: tcp_state::ESTABLISHED,
            scale: [0; 2],
            flags: [0; 2],
        }),
        sctp: None,
        helper: None,
        shifts: [None; 2],
        syn_proxy: None,
    }
}
