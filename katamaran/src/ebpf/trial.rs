//! What this kernel makes of the programs: each is loaded, and attached where nobody is disturbed.

use aya::Ebpf;
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{RawTracePoint, SchedClassifier};
use katamaran_common::layout::Config;
use katamaran_common::names;

use super::attach::{AttachMode, AttachPreference, Direction, Hook, attach_raw};
use super::error::EbpfError;
use super::object;
use super::plane::write_config;
use super::witness::{TRACEPOINTS, Witness, WitnessMissing};

/// What came of it.
#[derive(Debug)]
pub struct Trial {
    /// The TC programs, attached to a device.
    pub hooks: Result<AttachMode, EbpfError>,
    /// The tracepoint programs.
    pub tracepoints: Result<(), WitnessMissing>,
}

/// How many reasons for a drop the kernel has names for; without them its drops can't be read.
///
/// # Errors
/// It does not describe itself, or has no reasons (Linux 5.17).
pub fn drop_reasons() -> Result<usize, WitnessMissing> {
    Ok(Witness::of_kernel()?.reasons.count())
}

/// Loads all programs, attaches each for a moment, and takes everything away again. Nothing is pinned.
///
/// Must be called on a thread in the namespace of device `ifindex`, which nobody else should use. The
/// tracepoints see the whole machine's packets for as long, and count none of them.
///
/// # Errors
/// The kernel does not even take the maps, or this binary has no programs.
pub fn try_programs(ifindex: u32) -> Result<Trial, EbpfError> {
    let mut ebpf = object::load()?;
    let witness = Witness::of_kernel();
    let mut config = Config::default();
    if let Ok(witness) = &witness {
        config.offsets = witness.offsets;
    }
    write_config(&mut ebpf, config)?;
    Ok(Trial {
        hooks: try_hooks(&mut ebpf, ifindex),
        tracepoints: match witness {
            Ok(_) => try_tracepoints(&mut ebpf)
                .map_err(|error| WitnessMissing::Tracepoint(Box::new(error))),
            Err(error) => Err(error.into()),
        },
    })
}

fn try_hooks(ebpf: &mut Ebpf, ifindex: u32) -> Result<AttachMode, EbpfError> {
    let preference = AttachPreference::Auto;
    for (program, direction) in [
        (names::PROGRAM_SOURCE, Direction::Egress),
        (names::PROGRAM_LIFT, Direction::Ingress),
        (names::PROGRAM_TAP, Direction::Egress),
        (names::PROGRAM_DELIVER, Direction::Ingress),
    ] {
        object::program::<SchedClassifier>(ebpf, program)?
            .load()
            .map_err(EbpfError::load(program))?;
        let hook = Hook::new(program, ifindex, direction, preference)?;
        let options = match preference.mode() {
            AttachMode::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            AttachMode::Clsact => {
                hook.add_clsact()?;
                TcAttachOptions::Netlink(NlOptions::default())
            }
        };
        // Detaches when dropped.
        drop(hook.attach(ebpf, options)?);
    }
    Ok(preference.mode())
}

fn try_tracepoints(ebpf: &mut Ebpf) -> Result<(), EbpfError> {
    for (program, tracepoint) in TRACEPOINTS {
        let raw: &mut RawTracePoint = object::program(ebpf, program)?;
        raw.load().map_err(EbpfError::load(program))?;
        // Detaches when dropped.
        drop(attach_raw(raw, program, tracepoint)?);
    }
    Ok(())
}
