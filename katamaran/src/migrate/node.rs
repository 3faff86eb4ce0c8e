//! The VM on this node: its QEMU, its tap, the namespaces they live in.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::{Doing as _, MigrateError, chain};
use super::rollback::UndoStack;
use crate::config::CommonConfig;
use crate::discover::{self, Wiring};
use crate::ebpf::PodEnd;
use crate::net::link::{LinkInfo, MacAddr};
use crate::net::{NetNs, Netlink};
use crate::qmp::{EventStream, Qmp, command};
use crate::role::Role;
use crate::session_id::SessionId;

/// The VM's QEMU and tap on this node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) qmp: Qmp,
    /// Every event since the connection was made.
    pub(crate) events: EventStream,
    pub(crate) qemu_pid: Option<i32>,
    /// The node's own network namespace: the one this process was started in.
    pub(crate) netns: NetNs,
    pub(crate) netlink: Netlink,
    /// Where the tap is.
    pub(crate) tap_netns: NetNs,
    pub(crate) tap_netlink: Netlink,
    pub(crate) tap: LinkInfo,
    /// How the tap hangs on the node's network, or why that can't be told.
    pub(crate) wiring: Result<Wiring, String>,
}

impl Node {
    /// Connects to QEMU and finds the tap. Changes nothing.
    ///
    /// # Errors
    /// No QMP at that socket, no tap, or several and none chosen.
    pub(crate) async fn open(config: &CommonConfig) -> Result<Self, MigrateError> {
        let qmp = Qmp::connect(&config.qmp).await.doing("connect to QMP")?;
        Self::around(qmp, config.tap.as_deref(), config.tap_netns.as_deref()).await
    }

    /// Finds the tap of a QEMU. Changes nothing.
    ///
    /// # Errors
    /// No tap, or several and none chosen.
    pub(crate) async fn around(
        qmp: Qmp,
        tap: Option<&str>,
        tap_netns: Option<&Path>,
    ) -> Result<Self, MigrateError> {
        let events = qmp.subscribe();
        let qemu_pid = qmp.peer_pid().and_then(|pid| i32::try_from(pid).ok());
        let netns = NetNs::current().doing("open this node's network namespace")?;
        let netlink = netns.netlink().doing("open netlink")?;
        let (tap_name, tap_netns) = match (tap, tap_netns, qemu_pid) {
            (Some(tap), Some(path), _) => {
                (tap.to_owned(), NetNs::open(path).doing("open --tap-netns")?)
            }
            (Some(tap), None, None) => (tap.to_owned(), netns.clone()),
            (wanted, path, Some(pid)) => {
                let found = discover::tap(pid, wanted)?;
                let tap_netns = match path {
                    Some(path) => NetNs::open(path).doing("open --tap-netns")?,
                    None => found.netns,
                };
                (found.name, tap_netns)
            }
            (None, _, None) => {
                return Err(MigrateError::Refused {
                    problems: vec![
                        "QEMU's process can't be told from its QMP socket: name the VM's tap with --tap".into(),
                    ],
                });
            }
        };
        let tap_netlink = tap_netns.netlink().doing("open netlink where the tap is")?;
        let tap = tap_netlink
            .link_by_name(&tap_name)
            .await
            .doing("look at the tap")?;
        let wiring = discover::wiring(&netlink, &tap_netlink, &tap).await;
        Ok(Self {
            qmp,
            events,
            qemu_pid,
            netns,
            netlink,
            tap_netns,
            tap_netlink,
            tap,
            wiring: wiring.map_err(|error| chain(&error)),
        })
    }

    /// The device of the node that leads to the VM and to nobody else: the tap itself, or the node's end of the
    /// pod's veth.
    ///
    /// # Errors
    /// It can't be told.
    pub(crate) fn last_device(&self) -> Result<&LinkInfo, MigrateError> {
        match &self.wiring {
            Ok(Wiring::Node) => Ok(&self.tap),
            Ok(Wiring::Pod(pod)) => Ok(&pod.outside),
            Err(why) => Err(refused(why)),
        }
    }

    /// The pod's end of the VM's veth, where there is a pod.
    pub(crate) fn pod_end(&self) -> Option<&LinkInfo> {
        match &self.wiring {
            Ok(Wiring::Pod(pod)) => Some(&pod.inside),
            Ok(Wiring::Node) | Err(_) => None,
        }
    }

    /// A device of the tap's namespace, for the programs.
    pub(crate) fn in_pod(&self, device: &LinkInfo) -> PodEnd {
        PodEnd {
            netns: self.tap_netns.file(),
            ifindex: device.index,
        }
    }

    /// Whether a device that the kernel names in a drop is between the last device of the node and QEMU.
    pub(crate) fn is_behind_last_device(&self, netns_inum: u32, ifindex: u32) -> bool {
        if self.tap_netns != self.netns && netns_inum == inum(&self.tap_netns) {
            return true;
        }
        netns_inum == inum(&self.netns)
            && self.last_device().is_ok_and(|last| last.index == ifindex)
    }

    /// The VM's Ethernet address on this tap, from QEMU.
    ///
    /// # Errors
    /// QEMU reports none, or several NICs.
    pub(crate) async fn vm_mac(&self) -> Result<MacAddr, MigrateError> {
        let filters = self
            .qmp
            .execute(command::QueryRxFilter::default())
            .await
            .doing("ask for the VM's Ethernet address")?;
        let mut macs = filters
            .iter()
            .filter_map(|f| f.main_mac.parse::<MacAddr>().ok());
        match (macs.next(), macs.next()) {
            (Some(mac), None) => Ok(mac),
            (None, _) => Err(refused(
                "QEMU reports no NIC whose Ethernet address can be read (query-rx-filter)",
            )),
            (Some(_), Some(_)) => Err(refused(
                "the VM has several NICs: only VMs with one are migrated by this version",
            )),
        }
    }

    /// The machine type and the RAM size, as far as this QEMU tells them.
    pub(crate) async fn shape(&self) -> (Option<String>, Option<u64>, Option<u32>) {
        let machine = self.qmp.machine_type().await.ok();
        let ram = self
            .qmp
            .execute(command::QueryMemorySizeSummary)
            .await
            .ok()
            .map(|m| m.total());
        let vcpus = self
            .qmp
            .execute(command::QueryCpusFast)
            .await
            .ok()
            .and_then(|cpus| u32::try_from(cpus.len()).ok());
        (machine, ram, vcpus)
    }

    /// QEMU's version as three numbers.
    #[must_use]
    pub(crate) fn qemu_version(&self) -> (u32, u32, u32) {
        let v = self.qmp.version();
        (v.major, v.minor, v.micro)
    }
}

/// The namespace's number as the kernel's programs see it (`ns_common.inum` is 32 bits wide).
pub(crate) fn inum(netns: &NetNs) -> u32 {
    u32::try_from(netns.inode()).unwrap_or(0)
}

/// Where the sessions' directories are.
pub(crate) const RUN_DIRECTORY: &str = "/run/katamaran";

/// Where a session's socket for QEMU's stream is: private to this user, and short enough for a socket's
/// address (108 bytes).
pub(crate) fn relay_directory(session: SessionId, role: Role) -> PathBuf {
    PathBuf::from(format!("{RUN_DIRECTORY}/{session}-{role}"))
}

/// Where the source's QEMU exports its drives to be compared. Apart from the relays' directory, which goes
/// with them.
pub(crate) fn verify_directory(session: SessionId) -> PathBuf {
    PathBuf::from(format!("{RUN_DIRECTORY}/{session}-verify"))
}

/// Makes a directory that only this user can enter, and the one it is in.
///
/// # Errors
/// [`MigrateError::Directory`].
pub(crate) fn make_private(directory: &Path) -> Result<(), MigrateError> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|source| MigrateError::Directory {
        path: directory.to_owned(),
        source,
    })
}

/// The same, for as long as the migration takes: it goes on every way out, with what is in it.
///
/// # Errors
/// [`MigrateError::Directory`].
pub(crate) fn make_private_for_now(
    directory: PathBuf,
    what: &str,
    undo: &mut UndoStack,
) -> Result<(), MigrateError> {
    make_private(&directory)?;
    undo.cleanup(what, move || async move {
        std::fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))
    });
    Ok(())
}

/// One problem found before anything was touched.
pub(crate) fn refused(problem: impl Into<String>) -> MigrateError {
    MigrateError::Refused {
        problems: vec![problem.into()],
    }
}

/// The running kernel's release.
pub(crate) fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".into(),
        |u| u.release().to_string_lossy().into_owned(),
    )
}
