//! What the hooks of armed sessions count, read from outside.
//!
//! A session's maps are not pinned; its programs are, by their links or themselves, and the kernel says which
//! maps a program uses. A pin is open only for as long as it takes to ask: the last descriptor of a link
//! would keep its program attached. Maps that are held on to keep nothing but themselves.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::links::PinnedLink;
use aya::programs::{ProgramInfo, loaded_programs};
use katamaran_common::counter::Counter;
use katamaran_common::layout::{Count, Mode};
use katamaran_common::names;
use katamaran_common::packet::Address;

use crate::session_id::SessionId;

use super::bpffs::{self};
use super::counters;
use super::error::EbpfError;
use crate::role::Role;

/// What the hook at the source does with V's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookMode {
    /// Lets them pass and counts nothing.
    Off,
    /// Lets them pass and counts them.
    Count,
    /// Sends them to the destination.
    Redirect,
}

/// The hooks of one session on this node.
pub struct ArmedHooks {
    session: SessionId,
    role: Role,
    addresses: Vec<IpAddr>,
    counts: PerCpuArray<MapData, Count>,
    mode: Option<Array<MapData, u32>>,
}

impl ArmedHooks {
    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Which end of it this node is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The addresses of its VM.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// What a hook has counted since it was armed.
    ///
    /// # Errors
    /// The kernel does not show its map.
    pub fn count(&self, counter: Counter) -> Result<Count, EbpfError> {
        counters::sum(&self.counts, counter)
    }

    /// What the hook does; `None` on the destination.
    #[must_use]
    pub fn mode(&self) -> Option<HookMode> {
        let mode = self.mode.as_ref()?.get(&0, 0).ok()?;
        [
            (Mode::Off, HookMode::Off),
            (Mode::Count, HookMode::Count),
            (Mode::Redirect, HookMode::Redirect),
        ]
        .into_iter()
        .find_map(|(code, told)| (code as u32 == mode).then_some(told))
    }
}

impl fmt::Debug for ArmedHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArmedHooks")
            .field("session", &self.session)
            .field("role", &self.role)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The sessions that have hooks on this node now, whether their process lives or not. One that comes or goes
/// meanwhile may be left out.
///
/// # Errors
/// When the pins can't be listed.
pub fn armed_hooks() -> Result<Vec<ArmedHooks>, EbpfError> {
    let mut found = Vec::new();
    for (session, path) in bpffs::role_directories()? {
        let role = [Role::Source, Role::Destination]
            .into_iter()
            .find(|role| path.ends_with(role.to_string()));
        if let Some(role) = role {
            found.extend(open(session, role, &path)?);
        }
    }
    Ok(found)
}

/// `None` where not all is there: it is being made, or taken off.
fn open(session: SessionId, role: Role, pins: &Path) -> Result<Option<ArmedHooks>, EbpfError> {
    // Either program of a role leads to the counters and the addresses; the source's to its mode.
    let wanted = match role {
        Role::Source => names::PROGRAM_SOURCE,
        Role::Destination => names::PROGRAM_TAP,
    };
    let (mut counts, mut addresses, mut mode) = (None, None, None);
    for id in maps_of(pins, wanted)? {
        let Ok(info) = MapInfo::from_id(id) else {
            continue;
        };
        match info.name_as_str() {
            Some(names::MAP_COUNTS) => counts = typed(id).ok(),
            Some(names::MAP_ADDRESSES) => addresses = typed::<HashMap<_, Address, u32>>(id).ok(),
            Some(names::MAP_MODE) => mode = typed(id).ok(),
            _ => {}
        }
    }
    let (Some(counts), Some(addresses)) = (counts, addresses) else {
        return Ok(None);
    };
    let addresses = addresses
        .keys()
        .flatten()
        .map(|key| Ipv6Addr::from(key.bytes()).to_canonical())
        .collect();
    Ok(Some(ArmedHooks {
        session,
        role,
        addresses,
        counts,
        mode,
    }))
}

/// The maps that a session's pinned program uses; none where it is not there.
pub(super) fn maps_of(pins: &Path, wanted: &str) -> Result<Vec<u32>, EbpfError> {
    let pin = bpffs::entries(pins)?
        .into_iter()
        .find(|pin| pin_of(pin, wanted));
    let maps = pin.and_then(|pin| program(&pin)?.map_ids().ok()?);
    Ok(maps.unwrap_or_default())
}

/// `PROGRAM_IFINDEX` is a link, `filter-PROGRAM-...` a program.
fn pin_of(pin: &Path, program: &str) -> bool {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(&format!("{program}_")) || name.starts_with(&format!("filter-{program}-"))
}

fn program(pin: &Path) -> Option<ProgramInfo> {
    let is_filter = pin
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("filter-"));
    if is_filter {
        return ProgramInfo::from_pin(pin).ok();
    }
    let id = {
        let link: aya::programs::links::FdLink = PinnedLink::from_pin(pin).ok()?.into();
        link.info().ok()?.program_id()
    };
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
}

pub(super) fn typed<M: TryFrom<Map, Error = MapError>>(id: u32) -> Result<M, MapError> {
    Map::from_map_data(MapData::from_id(id)?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_links_and_of_filters_are_told_by_their_name() {
        for (pin, is_it) in [
            ("/p/ktm_source_7", true),
            ("/p/filter-ktm_source-4026531840-7-egress-own", true),
            ("/p/ktm_drop", false),
            ("/p/ktm_xmit", false),
        ] {
            assert_eq!(pin_of(Path::new(pin), "ktm_source"), is_it, "{pin}");
        }
    }
}
