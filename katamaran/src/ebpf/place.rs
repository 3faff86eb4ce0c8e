//! Where a device is: in the calling thread's network namespace, or in another.

use super::error::EbpfError;
use crate::net::NetNs;

/// The pod's end of a veth.
#[derive(Clone, Debug)]
pub struct PodEnd {
    /// The pod's network namespace.
    pub netns: NetNs,
    /// The device's index there.
    pub ifindex: u32,
}

/// A network namespace; by default the calling thread's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    netns: Option<NetNs>,
}

impl Place {
    pub(super) fn of(pod: &PodEnd) -> Self {
        Self {
            netns: Some(pod.netns.clone()),
        }
    }

    /// Works inside, on a thread of its own where that is another namespace.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, EbpfError> + Send,
    ) -> Result<T, EbpfError> {
        match &self.netns {
            None => work(),
            Some(netns) => netns
                .run(work)
                .map_err(|source| EbpfError::Enter { source })?,
        }
    }
}
