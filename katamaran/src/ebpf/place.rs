//! Where a device is: in the calling thread's network namespace, or in another.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

use super::error::EbpfError;

/// The pod's end of a veth.
#[derive(Clone, Debug)]
pub struct PodEnd {
    /// The pod's network namespace, opened.
    pub netns: Arc<File>,
    /// The device's index there.
    pub ifindex: u32,
}

/// A network namespace; by default the calling thread's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    netns: Option<Arc<File>>,
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
        let Some(netns) = &self.netns else {
            return work();
        };
        let failed = |source: io::Error| EbpfError::Namespace { source };
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new()
                .name("ktm-hook".to_owned())
                .spawn_scoped(scope, || {
                    setns(&**netns, CloneFlags::CLONE_NEWNET)
                        .map_err(|errno| failed(errno.into()))?;
                    work()
                })
                .map_err(failed)?;
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
