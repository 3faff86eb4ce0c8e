//! What can go wrong with the data plane.

use std::io;
use std::path::PathBuf;

use crate::role::Role;
use crate::session_id::SessionId;

/// A failure of the eBPF data plane.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// This binary was built without the programs.
    #[error(
        "the eBPF object was not built: run `cargo xtask build-ebpf` and build katamaran again"
    )]
    ObjectNotBuilt,
    /// The embedded programs are older than the code around them.
    #[error(
        "the eBPF object was built from other sources ({built_from}) than katamaran ({sources}): \
         run `cargo xtask build-ebpf` and build katamaran again"
    )]
    ObjectStale {
        /// Hash of the sources the object was built from.
        built_from: &'static str,
        /// Hash of the sources that katamaran was built from.
        sources: &'static str,
    },
    /// The kernel did not take the object.
    #[error("load the eBPF object")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel did not take a program.
    #[error("load program {program}")]
    LoadProgram {
        /// Its name.
        program: &'static str,
        /// Why; with the verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks something the code expects.
    #[error("the eBPF object has no {kind} named {name}")]
    Missing {
        /// "program" or "map".
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program could not be attached.
    #[error("attach {program} to {hook}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Where to.
        hook: String,
        /// Why.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A link could not be pinned.
    #[error("pin {path}")]
    Pin {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<aya::pin::PinError>,
    },
    /// A map could not be read or written.
    #[error("{operation} map {map}")]
    Map {
        /// "read" or "write".
        operation: &'static str,
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A running process holds this session's data plane.
    #[error("session {session} is already armed as {role} by a running process")]
    SessionLive {
        /// The session.
        session: SessionId,
        /// The role.
        role: Role,
    },
    /// Something about the BPF file system failed.
    #[error("{operation} {path}")]
    Bpffs {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such device in this namespace.
    #[error("no network device with index {ifindex} in this namespace")]
    NoDevice {
        /// Its index.
        ifindex: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device has no Ethernet header, which the programs rely on.
    #[error("device {name} is not an Ethernet device")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// The request makes no sense.
    #[error("V has no address, or more than {limit}: {count}")]
    AddressCount {
        /// How many were given.
        count: usize,
        /// How many there may be.
        limit: u32,
    },
    /// V has an address of a family that the tunnel has no ends for.
    #[error("V's address {address} has no tunnel end of its family")]
    NoTunnelEnd {
        /// The address.
        address: std::net::IpAddr,
    },
    /// A request to the kernel's traffic control failed.
    #[error("{operation} the clsact qdisc of device {ifindex}")]
    Clsact {
        /// What was tried.
        operation: &'static str,
        /// On which device.
        ifindex: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace of a hook could not be entered or told.
    #[error("enter or look at the network namespace of a hook")]
    Namespace {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A filter that a dead process left is in another namespace than the calling thread.
    #[error("the filter of {pin} is in another network namespace")]
    OtherNamespace {
        /// The pin that stands for it.
        pin: PathBuf,
    },
    /// Something could not be detached.
    #[error("detach {program}")]
    Detach {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
}

impl EbpfError {
    /// Why a program does not load.
    pub(super) fn load(program: &'static str) -> impl Fn(aya::programs::ProgramError) -> Self {
        move |source| Self::LoadProgram {
            program,
            source: Box::new(source),
        }
    }

    /// Why a program can't be attached.
    pub(super) fn attach(
        program: &'static str,
        hook: &str,
    ) -> impl Fn(aya::programs::ProgramError) -> Self {
        move |source| Self::Attach {
            program,
            hook: hook.to_owned(),
            source: Box::new(source),
        }
    }

    /// What an operation on a map failed with.
    pub(super) fn map(
        operation: &'static str,
        map: &'static str,
    ) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| Self::Map {
            operation,
            map,
            source: Box::new(source),
        }
    }

    /// The caller lacks a privilege (CAP_BPF, CAP_NET_ADMIN or CAP_PERFMON).
    #[must_use]
    pub fn not_permitted(&self) -> bool {
        let mut cause = Some(self as &(dyn std::error::Error + 'static));
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.kind() == io::ErrorKind::PermissionDenied;
            }
            cause = error.source();
        }
        false
    }

    /// Whether katamaran has to be built (again) with the eBPF object.
    #[must_use]
    pub fn needs_build(&self) -> bool {
        matches!(self, Self::ObjectNotBuilt | Self::ObjectStale { .. })
    }
}
