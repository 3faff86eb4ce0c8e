//! What both roles have in common: load, configure, attach, pin; and all of it backwards.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::maps::{Array, HashMap};
use aya::programs::SchedClassifier;
use katamaran_common::layout::{Config, MAX_ADDRESSES};
use katamaran_common::names;
use katamaran_common::packet::Address;

use crate::session_id::SessionId;

use super::attach::{AttachMode, Attachments, Hook};
use super::bpffs::PinDirectory;
use super::counters::CounterMaps;
use super::drops::{DropMap, PacketDrop};
use super::error::EbpfError;
use super::object;
use super::tunnel::map_key;
use super::witness::{Witness, WitnessMissing};
use crate::role::Role;

/// Programs in the kernel, attached and pinned.
pub(super) struct Plane {
    attachments: Attachments,
    pins: PinDirectory,
    counters: Mutex<CounterMaps>,
    drops: DropMap,
    witness: Result<Witness, WitnessMissing>,
    /// Keeps the programs loaded.
    _ebpf: Ebpf,
}

impl Plane {
    /// Puts everything in place. Order: maps, pins, tracepoints, hooks, so that whatever a hook lets
    /// pass is already being watched.
    pub(super) fn arm<T>(
        session: SessionId,
        role: Role,
        mut config: Config,
        addresses: &[IpAddr],
        hooks: &[Hook],
        sizes: &[(&'static str, u32)],
        prepare: impl FnOnce(&mut Ebpf) -> Result<T, EbpfError>,
    ) -> Result<(Self, T), EbpfError> {
        let witness = Witness::of_kernel();
        if let Ok(witness) = &witness {
            config.offsets = witness.offsets;
        }
        let mut ebpf = object::load_sized(sizes)?;
        write_config(&mut ebpf, config)?;
        write_addresses(&mut ebpf, addresses)?;
        let prepared = prepare(&mut ebpf)?;
        let counters = CounterMaps::take(&mut ebpf)?;
        let drops = DropMap::take(&mut ebpf)?;

        let pins = PinDirectory::claim(session, role)?;
        let mut attachments = Attachments::default();
        let witness = match witness {
            Ok(witness) => match Witness::attach(&mut ebpf, &mut attachments, &pins) {
                Ok(()) => Ok(witness),
                Err(error) => {
                    attachments.remove_or_warn();
                    Err(WitnessMissing::Tracepoint(Box::new(error)))
                }
            },
            Err(error) => Err(error.into()),
        };
        if let Err(missing) = &witness {
            tracing::warn!(
                error = missing as &dyn std::error::Error,
                "drops can't be witnessed"
            );
        }
        if let Err(error) = attach_hooks(&mut ebpf, &mut attachments, &pins, hooks) {
            attachments.remove_or_warn();
            if let Err(second) = pins.remove() {
                tracing::warn!(error = &second as &dyn std::error::Error, "could not unpin");
            }
            return Err(error);
        }
        let counters = Mutex::new(counters);
        Ok((
            Self {
                attachments,
                pins,
                counters,
                drops,
                witness,
                _ebpf: ebpf,
            },
            prepared,
        ))
    }

    pub(super) fn counters(&self) -> MutexGuard<'_, CounterMaps> {
        // Nothing in there can be left half done.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget_first_redirected(&self) -> Result<(), EbpfError> {
        self.counters().forget_first_redirected()
    }

    pub(super) fn is_witnessed(&self) -> bool {
        self.witness.is_ok()
    }

    pub(super) fn witness_missing(&self) -> Option<&WitnessMissing> {
        self.witness.as_ref().err()
    }

    pub(super) fn drops(&self) -> Result<Option<Vec<PacketDrop>>, EbpfError> {
        self.witness
            .as_ref()
            .ok()
            .map(|witness| self.drops.read(&witness.reasons))
            .transpose()
    }

    pub(super) fn attach_mode(&self) -> AttachMode {
        self.attachments.mode().unwrap_or(AttachMode::Tcx)
    }

    pub(super) fn has_reset_a_queue(&self, of: &str) -> bool {
        self.attachments.has_reset_a_queue(of)
    }

    /// Takes everything off; goes on after a failure and returns the first.
    pub(super) fn remove(mut self) -> Result<(), EbpfError> {
        let detached = self.attachments.remove();
        detached.and(self.pins.remove())
    }
}

fn attach_hooks(
    ebpf: &mut Ebpf,
    attachments: &mut Attachments,
    pins: &PinDirectory,
    hooks: &[Hook],
) -> Result<(), EbpfError> {
    let mut loaded = Vec::new();
    for hook in hooks {
        let program = hook.program;
        if !loaded.contains(&program) {
            object::program::<SchedClassifier>(ebpf, program)?
                .load()
                .map_err(EbpfError::load(program))?;
            loaded.push(program);
        }
        attachments.classifier(ebpf, hook, pins.path())?;
    }
    Ok(())
}

pub(super) fn write_config(ebpf: &mut Ebpf, config: Config) -> Result<(), EbpfError> {
    let map = names::MAP_CONFIG;
    let mut slot = Array::<_, Config>::try_from(object::map_mut(ebpf, map)?)
        .map_err(EbpfError::map("open", map))?;
    slot.set(0, config, 0).map_err(EbpfError::map("write", map))
}

pub(super) fn write_addresses(ebpf: &mut Ebpf, addresses: &[IpAddr]) -> Result<(), EbpfError> {
    let limit = MAX_ADDRESSES;
    if addresses.is_empty() || addresses.len() > limit as usize {
        return Err(EbpfError::AddressCount {
            count: addresses.len(),
            limit,
        });
    }
    let map = names::MAP_ADDRESSES;
    let mut keys = HashMap::<_, Address, u32>::try_from(object::map_mut(ebpf, map)?)
        .map_err(EbpfError::map("open", map))?;
    for address in addresses {
        keys.insert(map_key(*address), 1, 0)
            .map_err(EbpfError::map("write", map))?;
    }
    Ok(())
}
