//! A network namespace of our own, to try things in: what a kernel can do is known when it has done it. It
//! vanishes, with all that is in it, when the last descriptor of it is closed.
//!
//! Trying a kind that is a module has the kernel load it, as using it would.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo as LinkInfoNla, LinkMessage};

use super::handle::{Operation, REQUEST_DEADLINE};
use super::qdisc::PlugQdisc;
use super::vxlan::{Vxlan, VxlanSpec};
use super::{NetError, NetNs, Netlink, Result};
use crate::role::Role;
use crate::session_id::SessionId;

const DEVICE: &str = "probe0";

/// The namespace, and a pair of devices in it that are up and that nobody uses.
#[derive(Debug)]
pub struct Scratch {
    netns: NetNs,
    netlink: Netlink,
    device: u32,
}

impl Scratch {
    /// Makes the namespace.
    ///
    /// # Errors
    /// No right to (CAP_SYS_ADMIN), or a kernel without veth.
    pub async fn new() -> Result<Self> {
        let netns = NetNs::fresh()?;
        let netlink = netns.netlink()?;
        let scratch = Self {
            device: 0,
            netns,
            netlink,
        };
        scratch.make(DEVICE, "veth").await?;
        let device = scratch.netlink.link_by_name(DEVICE).await?.index;
        let links = scratch.netlink.links().await?;
        for link in links
            .iter()
            .filter(|link| link.kind == super::link::LinkKind::Veth)
        {
            scratch.netlink.set_up(link.index).await?;
        }
        Ok(Self { device, ..scratch })
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The index of a device in it.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Installs a plug as a migration does, and removes it.
    ///
    /// # Errors
    /// `unsupported()` where the kernel has none.
    pub async fn try_plug(&self) -> Result<()> {
        let plug = PlugQdisc::install(&self.netlink, self.device, 1 << 20).await?;
        plug.remove(REQUEST_DEADLINE).await
    }

    /// Makes a vxlan device as a migration does, and removes it.
    ///
    /// # Errors
    /// `unsupported()` where the kernel has none.
    pub async fn try_vxlan(&self, port: u16) -> Result<()> {
        let spec = VxlanSpec {
            session: SessionId::random(),
            role: Role::Source,
            local: [192, 0, 2, 1].into(),
            remote: [192, 0, 2, 2].into(),
            port,
            vm_mtu: 1500,
            txqlen: 1000,
        };
        Vxlan::create(&self.netlink, &spec).await?.remove().await
    }

    /// Makes a device of a kind, by the kernel's name for it.
    ///
    /// # Errors
    /// `unsupported()` where the kernel has no such kind.
    pub async fn try_device(&self, kind: &str) -> Result<()> {
        match self.make("probe2", kind).await {
            // The kernel knows the kind: it wants more to be said, or has one like it already.
            Err(error) if error.already_exists() || error.out_of_range() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                let made = self.netlink.link_by_name("probe2").await?;
                self.netlink.delete_link(made.index).await
            }
        }
    }

    async fn make(&self, name: &str, kind: &str) -> Result<()> {
        let operation = Operation::new("create a device of kind", kind);
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfoNla::Kind(InfoKind::Other(kind.to_owned()))]),
        ];
        self.netlink
            .execute(
                &operation,
                RouteNetlinkMessage::NewLink(message),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await
            .map_err(|error| match error {
                // An unknown kind of device.
                NetError::Kernel { errno, detail, .. }
                    if errno == nix::errno::Errno::EOPNOTSUPP =>
                {
                    NetError::Unsupported {
                        feature: "such kind of device",
                        detail,
                        errno,
                    }
                }
                other => other,
            })
    }
}
