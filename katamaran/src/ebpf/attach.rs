//! Attaching programs, pinning what attaches them, and taking them off again.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError};
use aya::programs::{ProgramError, RawTracePoint, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;

use super::device;
use super::error::EbpfError;
use super::netlink;
use super::object;

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
    fn mode(self) -> AttachMode {
        match self {
            Self::Auto if has_tcx() => AttachMode::Tcx,
            Self::Auto | Self::Clsact => AttachMode::Clsact,
        }
    }
}

fn has_tcx() -> bool {
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
        /// The device whose clsact qdisc is ours.
        clsact_of: Option<u32>,
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

    /// Attaches a loaded TC program to a device.
    pub(super) fn classifier(
        &mut self,
        ebpf: &mut Ebpf,
        program: &'static str,
        ifindex: u32,
        direction: Direction,
        preference: AttachPreference,
        pins: &Path,
    ) -> Result<(), EbpfError> {
        let interface = device::name(ifindex)?;
        let hook = format!("{interface} {}", direction.name());
        let failed = |source| EbpfError::Attach {
            program,
            hook: hook.clone(),
            source: Box::new(source),
        };
        let mode = preference.mode();
        let mut clsact_of = None;
        let options = match mode {
            AttachMode::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            AttachMode::Clsact => {
                match tc::qdisc_add_clsact(&interface) {
                    Ok(()) => clsact_of = Some(ifindex),
                    Err(error) if already_there(&error) => {}
                    Err(error) => return Err(failed(error.into())),
                }
                TcAttachOptions::Netlink(NlOptions {
                    priority: 1,
                    ..NlOptions::default()
                })
            }
        };
        let classifier: &mut SchedClassifier = object::program(ebpf, program)?;
        let link = classifier
            .attach_with_options(&interface, direction.attach_type(), options)
            .and_then(|id| classifier.take_link(id))
            .map_err(failed)?;
        self.mode = Some(mode);
        if mode == AttachMode::Tcx {
            let link = FdLink::try_from(link).map_err(|error| {
                failed(ProgramError::IOError(std::io::Error::other(
                    error.to_string(),
                )))
            })?;
            return self.pin(program, link, &pins.join(format!("{program}_{ifindex}")));
        }
        // A filter can't be pinned. The program is, under a name that says where its filter is.
        let pin = pins.join(filter_pin(program, ifindex, direction, clsact_of.is_some()));
        classifier.pin(&pin).map_err(|error| EbpfError::Pin {
            path: pin.clone(),
            source: Box::new(error),
        })?;
        let filter = ManuallyDrop::new(link);
        self.held.push(Held::Filter {
            program,
            filter,
            pin,
            clsact_of,
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
        let link = raw
            .attach(tracepoint)
            .and_then(|id| raw.take_link(id))
            .map_err(|source| EbpfError::Attach {
                program,
                hook: tracepoint.to_owned(),
                source: Box::new(source),
            })?;
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
                tracing::warn!(error = &error as &dyn std::error::Error, "could not detach");
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
                clsact_of,
            } => {
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
                })?;
                clsact_of.map_or(Ok(()), remove_clsact)
            }
        }
    }
}

fn already_there(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

fn remove_clsact(ifindex: u32) -> Result<(), EbpfError> {
    netlink::remove_unused_clsact(ifindex).map_err(|source| EbpfError::Clsact {
        operation: "remove",
        ifindex,
        source,
    })
}

fn filter_pin(program: &str, ifindex: u32, direction: Direction, created: bool) -> String {
    let clsact = if created { "own" } else { "shared" };
    format!("filter-{program}-{ifindex}-{}-{clsact}", direction.name())
}

/// Takes off the filter that a pinned program of a dead process belongs to.
///
/// TCX links and tracepoints need nothing: they go with their pin. A filter is looked for in the
/// calling thread's namespace; a device that is gone took its filters along.
pub(super) fn detach_pinned(pin: &Path) -> Result<(), EbpfError> {
    let name = pin
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let parts: Vec<&str> = name.split('-').collect();
    let ["filter", program, ifindex, direction, clsact] = parts[..] else {
        return Ok(());
    };
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
        Ok(()) => {}
        Err(TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(EbpfError::Clsact {
                operation: "remove our filter from",
                ifindex,
                source: std::io::Error::other(error.to_string()),
            });
        }
    }
    if clsact == "own" {
        remove_clsact(ifindex)
    } else {
        Ok(())
    }
}
