//! What can go wrong with the node's network, and the classes of errno that callers branch on.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

/// An error of [`crate::net`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The kernel refused a netlink request or a system call.
    #[error("{operation} {object}{}", kernel_text(.detail.as_deref()))]
    Kernel {
        /// What was asked for, for example `create vxlan device`.
        operation: &'static str,
        /// The object's name.
        object: String,
        /// The kernel's own explanation (extended acknowledgement), when it gave one.
        detail: Option<String>,
        /// Its answer.
        #[source]
        errno: Errno,
    },
    /// The kernel did not answer in time.
    #[error("{operation} {object}: not done within {} ms", .after.as_millis())]
    Deadline {
        /// What was asked for.
        operation: &'static str,
        /// The object's name.
        object: String,
        /// How long we waited.
        after: Duration,
    },
    /// The netlink connection was closed, or broke.
    #[error("{operation} {object}: the netlink connection has ended")]
    Closed {
        /// What was asked for.
        operation: &'static str,
        /// The object's name.
        object: String,
    },
    /// The kernel's answer could not be understood, or lacks something that it must have.
    #[error("{operation} {object}: the kernel's answer lacks {missing}")]
    Incomplete {
        /// What was asked for.
        operation: &'static str,
        /// The object's name.
        object: String,
        /// What is missing.
        missing: &'static str,
    },
    /// The running kernel does not have a feature.
    #[error("the kernel has no {feature}{}", kernel_text(.detail.as_deref()))]
    Unsupported {
        /// The feature, for example `sch_plug`.
        feature: &'static str,
        /// The kernel's own explanation.
        detail: Option<String>,
        /// Its answer.
        #[source]
        errno: Errno,
    },
    /// A network namespace could not be opened.
    #[error("open network namespace {}", .path.display())]
    OpenNetNs {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of `/proc` could not be read.
    #[error("read {}", .path.display())]
    ReadProc {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("start a thread inside network namespace {netns}")]
    Thread {
        /// The namespace.
        netns: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A netlink handle was asked for outside an asynchronous runtime.
    #[error("open a netlink handle in {netns} outside of a tokio runtime")]
    NoRuntime {
        /// The namespace.
        netns: String,
    },
    /// Something that must be there is not.
    #[error("no {what} {object}")]
    Missing {
        /// Its kind, for example `route to`.
        what: &'static str,
        /// Its name.
        object: String,
    },
    /// A device is not of the kind that the operation needs.
    #[error("{device} is {found}, not {wanted}")]
    WrongKind {
        /// The device.
        device: String,
        /// What it is.
        found: String,
        /// What was needed.
        wanted: &'static str,
    },
    /// A queue still holds packets that the operation would destroy.
    #[error("{operation} {object}: {queued} packets are still queued")]
    NotEmpty {
        /// What was asked for.
        operation: &'static str,
        /// The device.
        object: String,
        /// How many packets.
        queued: u64,
    },
    /// A frame is longer than the device takes.
    #[error("put a frame of {length} bytes into device {ifindex}: longer than its MTU allows")]
    FrameTooLong {
        /// The device's index.
        ifindex: u32,
        /// The frame's length in bytes, Ethernet header included.
        length: usize,
    },
    /// The device's ring is full, or the device has no carrier; the frame was dropped.
    #[error("put a frame into device {ifindex}: its ring is full or it has no carrier")]
    NoRoom {
        /// The device's index.
        ifindex: u32,
    },
    /// A frame read from a tap filled the whole buffer and may have been cut.
    #[error("a frame in tap {tap} is longer than {limit} bytes")]
    FrameCut {
        /// The tap.
        tap: String,
        /// The buffer's size.
        limit: usize,
    },
    /// An outer packet of a tunnel would have to be fragmented where it can't be.
    #[error(
        "the tunnel to {remote} needs an underlay MTU of {needed}, but the path has {available}, \
         and the kernel does not fragment tunnelled packets over IPv6"
    )]
    UnderlayMtu {
        /// The other end.
        remote: std::net::IpAddr,
        /// Bytes needed.
        needed: u32,
        /// Bytes the path has.
        available: u32,
    },
}

fn kernel_text(detail: Option<&str>) -> String {
    detail.map_or_else(String::new, |text| format!(" (kernel: {text})"))
}

impl NetError {
    pub(crate) fn kernel(operation: &'static str, object: impl ToString, errno: Errno) -> Self {
        Self::Kernel {
            operation,
            object: object.to_string(),
            detail: None,
            errno,
        }
    }

    /// The errno behind this error, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "all other variants come from us, not from the kernel"
        )]
        match self {
            Self::Kernel { errno, .. } | Self::Unsupported { errno, .. } => Some(*errno),
            Self::OpenNetNs { source, .. }
            | Self::ReadProc { source, .. }
            | Self::Thread { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// The object to be created is there already.
    #[must_use]
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// The object to be removed or read is not there (any more).
    ///
    /// ENODEV: no such device index or name. ENOENT: no such route, neighbour, queueing discipline
    /// or file. ESRCH: no such route (IPv4 delete) or process. EADDRNOTAVAIL: no such address.
    #[must_use]
    pub fn already_gone(&self) -> bool {
        matches!(self, Self::Missing { .. })
            || matches!(
                self,
                Self::Kernel { .. } | Self::OpenNetNs { .. } | Self::ReadProc { .. }
            ) && matches!(
                self.errno(),
                Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL)
            )
    }

    /// The kernel lacks what was asked for.
    ///
    /// EOPNOTSUPP: the module is there, the feature is not, or the device kind is unknown. ENOSYS:
    /// the system call is missing. EAFNOSUPPORT, EPROTONOSUPPORT: no such protocol, for example a
    /// kernel without IPv6.
    #[must_use]
    pub fn unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
            || matches!(
                self.errno(),
                Some(
                    Errno::EOPNOTSUPP
                        | Errno::ENOSYS
                        | Errno::EAFNOSUPPORT
                        | Errno::EPROTONOSUPPORT
                )
            )
    }

    /// The caller lacks a privilege (CAP_NET_ADMIN, CAP_SYS_ADMIN or CAP_SYS_PTRACE).
    #[must_use]
    pub fn not_permitted(&self) -> bool {
        matches!(self.errno(), Some(Errno::EPERM | Errno::EACCES))
    }

    /// The kernel takes no such value: ERANGE from its range checks, EINVAL from others, and for the length
    /// of a tap's ring ENOMEM or, from the notifier that hides the reason, EPERM.
    #[must_use]
    pub fn out_of_range(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::ERANGE | Errno::EINVAL | Errno::ENOMEM | Errno::EPERM)
        )
    }

    /// Nothing was heard in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_fall_into_their_classes() {
        let error = |errno| NetError::kernel("delete link", "ktms0", errno);
        assert!(error(Errno::ENODEV).already_gone());
        assert!(error(Errno::ESRCH).already_gone());
        assert!(error(Errno::EEXIST).already_exists());
        assert!(error(Errno::EOPNOTSUPP).unsupported());
        assert!(error(Errno::EPERM).not_permitted());
        assert!(!error(Errno::EBUSY).already_gone());
        let missing = NetError::Unsupported {
            feature: "sch_plug",
            detail: None,
            errno: Errno::ENOENT,
        };
        assert!(missing.unsupported());
        assert!(
            !missing.already_gone(),
            "a missing feature is not a removed object"
        );
    }

    #[test]
    fn the_kernels_own_words_are_kept() {
        let error = NetError::Kernel {
            operation: "create vxlan device",
            object: "ktms0".to_owned(),
            detail: Some("A VXLAN device already exists".to_owned()),
            errno: Errno::EEXIST,
        };
        assert_eq!(
            error.to_string(),
            "create vxlan device ktms0 (kernel: A VXLAN device already exists)"
        );
    }
}
