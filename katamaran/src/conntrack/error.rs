//! What can go wrong with the connection tracking table.

use nix::errno::Errno;

/// An error of [`crate::conntrack`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConntrackError {
    /// No netlink socket for the connection tracking table.
    #[error("open a netlink socket for connection tracking")]
    Open {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused the request, or could not be reached.
    #[error("{doing}")]
    Kernel {
        /// What was asked for, for example `list connection tracking entries`.
        doing: &'static str,
        /// Its answer.
        #[source]
        errno: Errno,
    },
    /// The kernel has no interface to its connection tracking table.
    #[error("{doing}: the kernel has no ctnetlink (load nf_conntrack_netlink)")]
    Unsupported {
        /// What was asked for.
        doing: &'static str,
        /// Its answer.
        #[source]
        errno: Errno,
    },
    /// The caller may not do this.
    #[error("{doing}: not permitted (it takes CAP_NET_ADMIN over the network namespace)")]
    NotPermitted {
        /// What was asked for.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        errno: Errno,
    },
    /// The kernel's answer is not what the protocol promises.
    #[error("{doing}: the kernel's answer {problem}")]
    Answer {
        /// What was asked for.
        doing: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl ConntrackError {
    pub(super) fn kernel(doing: &'static str, errno: Errno) -> Self {
        // nfnetlink says EINVAL for a subsystem that is not there, and the socket EPROTONOSUPPORT if there is no
        // nfnetlink at all. Our own requests are never malformed.
        match errno {
            Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP => {
                Self::Unsupported { doing, errno }
            }
            Errno::EPERM | Errno::EACCES => Self::NotPermitted { doing, errno },
            _ => Self::Kernel { doing, errno },
        }
    }

    /// The caller lacks CAP_NET_ADMIN.
    #[must_use]
    pub fn not_permitted(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}
