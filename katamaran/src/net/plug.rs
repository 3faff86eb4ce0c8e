//! The plug (`sch_plug`).
//!
//! The plug holds packets for the VM while it is between the nodes. How the kernel's behaves:
//!
//! - It starts plugged. With options given, adding it reads the limit and ignores the action.
//! - The limit is in bytes and counts super-packets in full; beyond it packets are dropped and counted.
//! - `release_indefinite` makes it a pass-through queue, in order. A tap below never pushes back: its ring
//!   must hold all that a release sends it at once.
//! - Deleting it destroys what it holds. Adding, replacing and deleting a root queueing discipline
//!   puts the device on the "noop" one for a moment, which drops, uncounted, whatever arrives then.
//! - Its limit can't be read back; `packets` counts at dequeue.

use std::time::Duration;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use nix::errno::Errno;
use tokio::time::Instant;

use super::handle::Operation;
use super::names::QDISC_MAJOR;
use super::qdisc::{QdiscStats, TCA_OPTIONS, recipe, root, stats};
use super::{NetError, Netlink, Result};

const PLUG: &str = "plug";
const OUR_HANDLE: TcHandle = TcHandle {
    major: QDISC_MAJOR,
    minor: 0,
};
/// How often the plug is looked at while it empties.
const POLL: Duration = Duration::from_millis(1);

/// `action` of `struct tc_plug_qopt`.
#[derive(Debug, Clone, Copy)]
enum Action {
    Block = 0,
    ReleaseIndefinite = 2,
    Limit = 3,
}

/// A plug that we installed. [`PlugQdisc::remove`] is its normal end.
#[derive(Debug)]
#[must_use = "the plug stays behind unless it is removed"]
pub struct PlugQdisc {
    netlink: Netlink,
    link: u32,
    previous: Option<TcMessage>,
    removed: bool,
}

impl PlugQdisc {
    /// Makes a plug that holds at most `limit_bytes` the root queueing discipline of device `link`, in
    /// pass-through mode. Do so before packets flow through the device. A plug of ours that was
    /// left behind is taken over.
    ///
    /// # Errors
    /// [`NetError::Unsupported`] when the kernel has no `sch_plug`: use the tap's ring then.
    pub async fn install(netlink: &Netlink, link: u32, limit_bytes: u32) -> Result<Self> {
        let operation = Operation::new("install a plug on device", link);
        let before = match netlink.root_message(link).await {
            Ok(message) => Some(message),
            Err(NetError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        let stale = before
            .as_ref()
            .is_some_and(|message| message.header.handle == OUR_HANDLE);
        let previous = before.filter(|message| {
            message.header.handle != OUR_HANDLE && message.header.handle != TcHandle::UNSPEC
        });
        let plug = Self {
            netlink: netlink.clone(),
            link,
            previous,
            removed: false,
        };
        if stale {
            plug.change(&operation, Action::Limit, limit_bytes).await?;
        } else {
            let mode = if plug.previous.is_some() {
                NLM_F_REPLACE
            } else {
                NLM_F_EXCL
            };
            let message = plug.request(&operation, Action::Block, limit_bytes)?;
            if let Err(error) = netlink
                .execute(&operation, message, NLM_F_CREATE | mode)
                .await
            {
                plug.forget();
                return Err(no_such_kind(error));
            }
        }
        let started = async {
            plug.release_indefinite().await?;
            plug.check_root().await
        };
        match started.await {
            Ok(()) => Ok(plug),
            Err(error) => {
                if let Err(second) = plug.delete().await {
                    tracing::warn!(%second, "a half-made plug stays behind");
                }
                Err(error)
            }
        }
    }

    /// The plug that a dead process has left on device `link`, if there is one. What was there before it is not known any more:
    /// [`PlugQdisc::remove`] leaves the kernel's default.
    ///
    /// # Errors
    /// The device can't be looked at.
    pub async fn left_behind(netlink: &Netlink, link: u32) -> Result<Option<Self>> {
        match netlink.root_message(link).await {
            Ok(message) if message.header.handle == OUR_HANDLE => Ok(Some(Self {
                netlink: netlink.clone(),
                link,
                previous: None,
                removed: false,
            })),
            Ok(_) | Err(NetError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Checks that the plug is the device's root queueing discipline and the device has carrier:
    /// without it, a plug is not in use yet and everything is dropped.
    ///
    /// # Errors
    /// It is not, or there is none.
    pub async fn check_live(&self) -> Result<()> {
        self.check_root().await?;
        let link = self.netlink.link_by_index(self.link).await?;
        if link.carrier {
            return Ok(());
        }
        Err(NetError::Missing {
            what: "carrier on device",
            object: link.name,
        })
    }

    async fn check_root(&self) -> Result<()> {
        let root = self.netlink.root_message(self.link).await?;
        if root.header.handle == OUR_HANDLE {
            return Ok(());
        }
        Err(NetError::WrongKind {
            device: format!("the root queueing discipline of device {}", self.link),
            found: stats(&root).kind,
            wanted: "our plug",
        })
    }

    /// Holds every packet from now on.
    ///
    /// # Errors
    /// The plug or the device is gone.
    pub async fn block(&self) -> Result<()> {
        let operation = Operation::new("block the plug on device", self.link);
        self.change(&operation, Action::Block, 0).await
    }

    /// Lets all held packets go, in order, and lets everything pass from now on.
    ///
    /// # Errors
    /// The plug or the device is gone.
    pub async fn release_indefinite(&self) -> Result<()> {
        let operation = Operation::new("release the plug on device", self.link);
        self.change(&operation, Action::ReleaseIndefinite, 0).await
    }

    /// The plug's counters.
    ///
    /// # Errors
    /// The device is gone.
    pub async fn stats(&self) -> Result<QdiscStats> {
        self.netlink.root_qdisc(self.link).await
    }

    /// Releases the plug, waits until it is empty, deletes it and puts back what was there. Packets that
    /// arrive during the deletion itself are dropped by the kernel: with traffic flowing,
    /// [`PlugQdisc::keep`] is the way that loses none.
    ///
    /// # Errors
    /// [`NetError::NotEmpty`] when it still holds packets after `deadline`: it stays then, in pass-through mode.
    pub async fn remove(mut self, deadline: Duration) -> Result<()> {
        let result = self.drain(deadline).await;
        match result {
            Err(error) if error.already_gone() => {
                self.removed = true;
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => self.delete().await,
        }
    }

    /// Leaves the plug in pass-through mode, where it is only a queue.
    ///
    /// # Errors
    /// It can't be released.
    pub async fn keep(self) -> Result<()> {
        self.release_indefinite().await?;
        tracing::info!(
            device = self.link,
            "the plug is left in place, passing everything"
        );
        self.forget();
        Ok(())
    }

    async fn drain(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        self.release_indefinite().await?;
        loop {
            let queued = self.stats().await?.qlen;
            if queued == 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(NetError::NotEmpty {
                    operation: "remove the plug from device",
                    object: self.link.to_string(),
                    queued: queued.into(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn delete(mut self) -> Result<()> {
        self.removed = true;
        let operation = Operation::new("remove the plug from device", self.link);
        let message = root(&operation, self.link, OUR_HANDLE)?;
        let message = RouteNetlinkMessage::DelQueueDiscipline(message);
        match self.netlink.execute(&operation, message, 0).await {
            Err(error) if error.already_gone() => {}
            other => other?,
        }
        let Some(previous) = self.previous.take() else {
            return Ok(());
        };
        let operation =
            Operation::new("put back the root queueing discipline of device", self.link);
        let message = RouteNetlinkMessage::NewQueueDiscipline(recipe(previous));
        self.netlink
            .execute(&operation, message, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }

    async fn change(&self, operation: &Operation, action: Action, limit: u32) -> Result<()> {
        let message = self.request(operation, action, limit)?;
        self.netlink.execute(operation, message, 0).await
    }

    fn request(
        &self,
        operation: &Operation,
        action: Action,
        limit: u32,
    ) -> Result<RouteNetlinkMessage> {
        let mut message = root(operation, self.link, OUR_HANDLE)?;
        message.attributes.push(TcAttribute::Kind(PLUG.to_owned()));
        message.attributes.push(options(action, limit));
        Ok(RouteNetlinkMessage::NewQueueDiscipline(message))
    }

    fn forget(mut self) {
        self.removed = true;
    }
}

impl Drop for PlugQdisc {
    fn drop(&mut self) {
        if !self.removed {
            tracing::warn!(
                device = self.link,
                "a plug was not removed and stays behind"
            );
        }
    }
}

/// `struct tc_plug_qopt { int action; u32 limit; }`, not a nest of attributes.
fn options(action: Action, limit: u32) -> TcAttribute {
    let mut value = (action as i32).to_ne_bytes().to_vec();
    value.extend_from_slice(&limit.to_ne_bytes());
    TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, value))
}

/// An unknown kind is ENOENT; a device that is gone is ENODEV.
fn no_such_kind(error: NetError) -> NetError {
    match error {
        NetError::Kernel {
            errno: Errno::ENOENT,
            detail,
            ..
        } => NetError::Unsupported {
            feature: "sch_plug",
            detail,
            errno: Errno::ENOENT,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_the_kernels_struct() {
        let TcAttribute::Other(nla) = options(Action::ReleaseIndefinite, 0x0102_0304) else {
            panic!("options must be raw")
        };
        use netlink_packet_core::Nla as _;
        let mut value = [0; 8];
        nla.emit_value(&mut value);
        assert_eq!(nla.kind(), TCA_OPTIONS);
        assert_eq!(value[..4], 2_i32.to_ne_bytes());
        assert_eq!(value[4..], 0x0102_0304_u32.to_ne_bytes());
    }
}
