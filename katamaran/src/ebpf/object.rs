//! The embedded object.

use aya::maps::{Map, MapData, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};

use super::error::EbpfError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/katamaran-ebpf.o"));
const SOURCE_HASH: &str = env!("KATAMARAN_SOURCE_HASH");
const OBJECT_HASH: &str = env!("KATAMARAN_OBJECT_HASH");

/// Whether this binary carries programs that fit it. Touches nothing.
///
/// # Errors
///
/// [`EbpfError::ObjectNotBuilt`] or [`EbpfError::ObjectStale`].
pub fn object_state() -> Result<(), EbpfError> {
    if OBJECT.is_empty() {
        return Err(EbpfError::ObjectNotBuilt);
    }
    if OBJECT_HASH != SOURCE_HASH {
        let built_from = if OBJECT_HASH.is_empty() {
            "unknown"
        } else {
            OBJECT_HASH
        };
        return Err(EbpfError::ObjectStale {
            built_from,
            sources: SOURCE_HASH,
        });
    }
    Ok(())
}

/// Creates the maps; no program is loaded yet.
pub(super) fn load() -> Result<Ebpf, EbpfError> {
    load_sized(&[])
}

/// The same, with other sizes of some maps than the object says.
pub(super) fn load_sized(sizes: &[(&'static str, u32)]) -> Result<Ebpf, EbpfError> {
    object_state()?;
    let mut loader = EbpfLoader::new();
    for (map, entries) in sizes {
        loader.map_max_entries(map, *entries);
    }
    loader
        .load(OBJECT)
        .map_err(|source| EbpfError::Load(Box::new(source)))
}

/// Loads one program and hands it out in its own type.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, EbpfError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(EbpfError::Missing {
            kind: "program",
            name,
        })?
        .try_into()
        .map_err(EbpfError::load(name))
}

/// Takes a map out of the object, in its own type. It must be kept until all programs are loaded.
pub(super) fn map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, EbpfError>
where
    M: TryFrom<Map, Error = MapError>,
{
    ebpf.take_map(name)
        .ok_or(EbpfError::Missing { kind: "map", name })?
        .try_into()
        .map_err(EbpfError::map("open", name))
}

/// A map that stays with the object.
///
/// The object must hold every map until all programs are loaded: they refer to maps by descriptor.
pub(super) fn map_mut<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Map, EbpfError> {
    ebpf.map_mut(name)
        .ok_or(EbpfError::Missing { kind: "map", name })
}

/// A one-slot map of single values.
pub(super) type Slot<V> = aya::maps::Array<MapData, V>;
