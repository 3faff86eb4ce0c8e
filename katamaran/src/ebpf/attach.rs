//! Attaching programs, pinning what attaches them, and taking them off again.
//!
//! Without TCX a program is a filter of a clsact qdisc, which we add where there is none. It stays: with a qdisc that comes or goes the
//! kernel resets the device's queue, and what waits in it, or comes meanwhile, is dropped (`qdisc_graft()`, net/sched/sch_api.c).
//! That a device gets one costs such packets once; with a device of ours it goes.

use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError};
use aya::programs::{ProgramError, RawTracePoint, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;

use super::device;
use super::error::EbpfError;
use super::object;
use super::place::Place;

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// A TCX link ahead of all other programs (Linux 6.6+).
    Tcx,
    /// A filter at the clsact qdisc, priority 1.
    Clsact,
}

/// Which way to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachPreference {
    /// TCX where the kernel has it.
    #[default]
    Auto,
    /// clsact always.
    Clsact,
}

impl AttachPreference {
    pub(super) fn mode(self) -> AttachMode {
        match self {
            Self::Auto if has_tcx() => AttachMode::Tcx,
            Self::Auto | Self::Clsact => AttachMode::Clsact,
        }
    }
}

/// Whether programs can be attached to a device without a reset of its queues (TCX, Linux 6.6+).
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Which way packets go through a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A TC program and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) program: &'static str,
    ifindex: u32,
    interface: String,
    direction: Direction,
    preference: AttachPreference,
    place: Place,
    /// Nothing goes through the device but what the programs send there.
    is_ours: bool,
}

impl Hook {
    pub(super) fn new(
        program: &'static str,
        ifindex: u32,
        direction: Direction,
        preference: AttachPreference,
    ) -> Result<Self, EbpfError> {
        Self::at(Place::default(), program, ifindex, direction, preference)
    }

    /// The same for a device in another namespace.
    pub(super) fn at(
        place: Place,
        program: &'static str,
        ifindex: u32,
        direction: Direction,
        preference: AttachPreference,
    ) -> Result<Self, EbpfError> {
        Ok(Self {
            program,
            ifindex,
            interface: place.run(|| device::name(ifindex))?,
            direction,
            preference,
            place,
            is_ours: false,
        })
    }

    /// The device was made for this session.
    pub(super) fn on_a_device_of_ours(self) -> Self {
        Self {
            is_ours: true,
            ..self
        }
    }

    fn failed(&self, source: ProgramError) -> EbpfError {
        let hook = format!("{} {}", self.interface, self.direction.name());
        EbpfError::attach(self.program, &hook)(source)
    }

    pub(super) fn attach(
        &self,
        ebpf: &mut Ebpf,
        options: TcAttachOptions,
    ) -> Result<SchedClassifierLink, EbpfError> {
        let program: &mut SchedClassifier = object::program(ebpf, self.program)?;
        program
            .attach_with_options(&self.interface, self.direction.attach_type(), options)
            .and_then(|id| program.take_link(id))
            .map_err(|error| self.failed(error))
    }

    /// Adds a clsact qdisc unless there is one. Returns whether there was none.
    pub(super) fn add_clsact(&self) -> Result<bool, EbpfError> {
        match tc::qdisc_add_clsact(&self.interface) {
            Ok(()) => Ok(true),
            Err(error) if already_there(&error) => Ok(false),
            Err(error) => Err(self.failed(error.into())),
        }
    }
}

#[derive(Debug)]
enum Held {
    Link {
        program: &'static str,
        link: PinnedLink,
    },
    Filter {
        program: &'static str,
        /// aya detaches a filter that is dropped; a crash would not, and neither do pinned links.
        filter: ManuallyDrop<SchedClassifierLink>,
        pin: PathBuf,
        /// A device that packets went through got its qdisc.
        has_reset_queue: bool,
        place: Place,
    },
}

/// All that is attached, in order; taken off in reverse.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    held: Vec<Held>,
    mode: Option<AttachMode>,
}

impl Attachments {
    /// How TC programs were attached; `None` before the first.
    pub(super) fn mode(&self) -> Option<AttachMode> {
        self.mode
    }

    /// Whether a device that packets go through got a clsact qdisc for this program.
    pub(super) fn has_reset_a_queue(&self, of: &str) -> bool {
        self.held.iter().any(|held| match held {
            Held::Link { .. } => false,
            Held::Filter {
                program,
                has_reset_queue,
                ..
            } => *has_reset_queue && *program == of,
        })
    }

    /// Attaches a loaded TC program to a device.
    pub(super) fn classifier(
        &mut self,
        ebpf: &mut Ebpf,
        hook: &Hook,
        pins: &Path,
    ) -> Result<(), EbpfError> {
        hook.place.run(|| self.classifier_here(ebpf, hook, pins))
    }

    fn classifier_here(
        &mut self,
        ebpf: &mut Ebpf,
        hook: &Hook,
        pins: &Path,
    ) -> Result<(), EbpfError> {
        let mode = hook.preference.mode();
        match mode {
            AttachMode::Tcx => {
                let options = TcAttachOptions::TcxOrder(LinkOrder::first());
                let link = FdLink::try_from(hook.attach(ebpf, options)?).map_err(|error| {
                    hook.failed(ProgramError::IOError(io::Error::other(error.to_string())))
                })?;
                let pin = pins.join(format!("{}_{}", hook.program, hook.ifindex));
                self.pin(hook.program, link, &pin)?;
            }
            AttachMode::Clsact => {
                let is_new = hook.add_clsact()?;
                self.filter(ebpf, hook, is_new && !hook.is_ours, pins)?;
            }
        }
        self.mode = Some(mode);
        Ok(())
    }

    /// A filter can't be pinned. The program is, under a name that says where its filter is.
    fn filter(
        &mut self,
        ebpf: &mut Ebpf,
        hook: &Hook,
        has_reset_queue: bool,
        pins: &Path,
    ) -> Result<(), EbpfError> {
        let pin = pins.join(filter_pin(hook)?);
        let first = NlOptions {
            priority: 1,
            ..NlOptions::default()
        };
        let link = hook.attach(ebpf, TcAttachOptions::Netlink(first))?;
        let program: &mut SchedClassifier = object::program(ebpf, hook.program)?;
        program.pin(&pin).map_err(|error| EbpfError::Pin {
            path: pin.clone(),
            source: Box::new(error),
        })?;
        let filter = ManuallyDrop::new(link);
        self.held.push(Held::Filter {
            program: hook.program,
            filter,
            pin,
            has_reset_queue,
            place: hook.place.clone(),
        });
        Ok(())
    }

    /// Attaches a loaded raw tracepoint program.
    pub(super) fn tracepoint(
        &mut self,
        ebpf: &mut Ebpf,
        program: &'static str,
        tracepoint: &str,
        pins: &Path,
    ) -> Result<(), EbpfError> {
        let raw: &mut RawTracePoint = object::program(ebpf, program)?;
        let link = attach_raw(raw, program, tracepoint)?;
        self.pin(program, link.into(), &pins.join(program))
    }

    fn pin(&mut self, program: &'static str, link: FdLink, path: &Path) -> Result<(), EbpfError> {
        let link = link.pin(path).map_err(|error| EbpfError::Pin {
            path: path.to_owned(),
            source: Box::new(error),
        })?;
        self.held.push(Held::Link { program, link });
        Ok(())
    }

    /// [`Self::remove`] on the way out of another failure.
    pub(super) fn remove_or_warn(&mut self) {
        if self.remove().is_err() {
            tracing::warn!("not everything could be detached: the sweep will find it");
        }
    }

    /// Detaches everything; goes on after a failure and returns the first.
    pub(super) fn remove(&mut self) -> Result<(), EbpfError> {
        let mut first = Ok(());
        while let Some(held) = self.held.pop() {
            if let Err(error) = held.remove() {
                tracing::warn!(error = &error as &dyn Error, "could not detach");
                first = first.and(Err(error));
            }
        }
        first
    }
}

impl Held {
    fn remove(self) -> Result<(), EbpfError> {
        match self {
            Self::Link { program, link } => {
                // The last descriptor of the link: closing it detaches.
                drop(link.unpin().map_err(|error| EbpfError::Detach {
                    program,
                    source: Box::new(ProgramError::IOError(error)),
                })?);
                Ok(())
            }
            Self::Filter {
                program,
                filter,
                pin,
                place,
                ..
            } => place.run(|| {
                use aya::programs::Link as _;
                ManuallyDrop::into_inner(filter)
                    .detach()
                    .map_err(|source| EbpfError::Detach {
                        program,
                        source: Box::new(source),
                    })?;
                std::fs::remove_file(&pin).map_err(|source| EbpfError::Bpffs {
                    operation: "remove",
                    path: pin,
                    source,
                })
            }),
        }
    }
}

/// Attaches a loaded raw tracepoint program; it is off again when the link is dropped.
pub(super) fn attach_raw(
    raw: &mut RawTracePoint,
    program: &'static str,
    tracepoint: &str,
) -> Result<RawTracePointLink, EbpfError> {
    raw.attach(tracepoint)
        .and_then(|id| raw.take_link(id))
        .map_err(EbpfError::attach(program, tracepoint))
}

fn already_there(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

const FILTER_PREFIX: &str = "filter-";

/// `filter-PROGRAM-NETNS-IFINDEX-DIRECTION`: all that is needed to take the filter off.
fn filter_pin(hook: &Hook) -> Result<String, EbpfError> {
    let Hook {
        program,
        ifindex,
        direction,
        ..
    } = hook;
    let netns = device::netns_inum()?;
    Ok(format!(
        "{FILTER_PREFIX}{program}-{netns}-{ifindex}-{}",
        direction.name()
    ))
}

/// Takes off what a dead process has left pinned, and removes the pin.
///
/// A link (TCX, tracepoint) is opened first and closed last: the last descriptor detaches at once, the
/// last pin only some time later. A filter is looked for in the calling thread's namespace; a device that
/// is gone took its filters along.
pub(super) fn take_off(pin: &Path) -> Result<(), EbpfError> {
    let failed = |source| EbpfError::Bpffs {
        operation: "remove",
        path: pin.to_owned(),
        source,
    };
    let name = pin
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if name.starts_with(FILTER_PREFIX) {
        detach_filter(pin, &name)?;
        return std::fs::remove_file(pin).map_err(failed);
    }
    let link =
        PinnedLink::from_pin(pin).map_err(|error| failed(io::Error::other(error.to_string())))?;
    link.unpin().map(drop).map_err(failed)
}

fn detach_filter(pin: &Path, name: &str) -> Result<(), EbpfError> {
    let parts: Vec<&str> = name.split('-').collect();
    let ["filter", program, netns, ifindex, direction] = parts[..] else {
        return Ok(());
    };
    if netns != device::netns_inum()?.to_string() {
        let alive = netns.parse().is_ok_and(device::netns_is_alive);
        // Its filters went with a namespace that is gone.
        return if alive {
            Err(EbpfError::OtherNamespace {
                pin: pin.to_owned(),
            })
        } else {
            Ok(())
        };
    }
    let Some((ifindex, interface)) = ifindex
        .parse()
        .ok()
        .and_then(|index| Some((index, device::name(index).ok()?)))
    else {
        return Ok(());
    };
    let direction = if direction == "ingress" {
        Direction::Ingress
    } else {
        Direction::Egress
    };
    match tc::qdisc_detach_program(&interface, direction.attach_type(), program) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(EbpfError::Clsact {
            operation: "remove our filter from",
            ifindex,
            source: io::Error::other(error.to_string()),
        }),
    }
}
