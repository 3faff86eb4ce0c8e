//! The VM on this node: its QEMU, and its network cards.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::{Doing as _, MigrateError, chain};
use super::message::NicDescription;
use super::nic::Nic;
use super::rollback::UndoStack;
use crate::config::CommonConfig;
use crate::discover;
use crate::net::link::MacAddr;
use crate::net::{NetNs, Netlink};
use crate::qmp::{EventStream, Qmp, command};
use crate::role::Role;
use crate::session_id::SessionId;

/// The VM's QEMU and network cards on this node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) qmp: Qmp,
    /// Every event since the connection was made.
    pub(crate) events: EventStream,
    pub(crate) qemu_pid: Option<i32>,
    /// The node's own network namespace: the one this process was started in.
    pub(crate) netns: NetNs,
    pub(crate) netlink: Netlink,
    /// At least one; in QEMU's order.
    pub(crate) nics: Vec<Nic>,
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

    /// Finds the taps of a QEMU. Changes nothing.
    ///
    /// # Errors
    /// No tap, or which belongs to which of the VM's cards can't be told.
    pub(crate) async fn around(
        qmp: Qmp,
        tap: Option<&str>,
        tap_netns: Option<&Path>,
    ) -> Result<Self, MigrateError> {
        let events = qmp.subscribe();
        let qemu_pid = qmp.peer_pid().and_then(|pid| i32::try_from(pid).ok());
        let netns = NetNs::current().doing("open this node's network namespace")?;
        let netlink = netns.netlink().doing("open netlink")?;
        let taps = match (tap, tap_netns, qemu_pid) {
            (Some(tap), Some(path), _) => {
                vec![(tap.to_owned(), NetNs::open(path).doing("open --tap-netns")?)]
            }
            (Some(tap), None, None) => vec![(tap.to_owned(), netns.clone())],
            (wanted, path, Some(pid)) => {
                let found = match wanted {
                    Some(_) => vec![discover::tap(pid, wanted)?],
                    None => discover::taps(pid)?,
                };
                let place = |found: discover::Tap| match path {
                    Some(path) => Ok((found.name, NetNs::open(path).doing("open --tap-netns")?)),
                    None => Ok((found.name, found.netns)),
                };
                found
                    .into_iter()
                    .map(place)
                    .collect::<Result<_, MigrateError>>()?
            }
            (None, _, None) => {
                return Err(refused(
                    "QEMU's process can't be told from its QMP socket: name the VM's tap with --tap",
                ));
            }
        };
        let mut nics = Vec::new();
        for (name, tap_netns, mac) in behind_cards(&qmp, qemu_pid, taps, tap).await? {
            nics.push(Nic::look(&netns, &netlink, tap_netns, &name, mac).await?);
        }
        Ok(Self {
            qmp,
            events,
            qemu_pid,
            netns,
            netlink,
            nics,
        })
    }

    /// The one that is the source's; the only one, where there is but one.
    pub(crate) fn nic_for(&self, theirs: &NicDescription) -> Option<&Nic> {
        match &self.nics[..] {
            [only] => Some(only),
            nics => nics.iter().find(|nic| nic.mac == Ok(MacAddr(theirs.mac))),
        }
    }

    /// The names of the VM's taps.
    pub(crate) fn tap_names(&self) -> String {
        let names: Vec<&str> = self.nics.iter().map(|nic| nic.tap.name.as_str()).collect();
        names.join(", ")
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

/// A tap, its namespace, and the Ethernet address of the card that it is behind.
type Behind = (String, NetNs, Result<MacAddr, String>);

/// The taps that are behind the VM's cards, with these. `named` is the one that the user names.
async fn behind_cards(
    qmp: &Qmp,
    qemu_pid: Option<i32>,
    taps: Vec<(String, NetNs)>,
    named: Option<&str>,
) -> Result<Vec<Behind>, MigrateError> {
    let macs = macs(qmp).await;
    let several = macs.as_ref().is_ok_and(|macs| macs.len() > 1);
    let mut taps = taps.into_iter();
    if named.is_some() || (taps.len() == 1 && !several) {
        let mac = match macs.as_deref() {
            Ok([only]) => Ok(*only),
            Ok([]) => Err(
                "QEMU reports no NIC whose Ethernet address can be read (query-rx-filter)"
                    .to_owned(),
            ),
            Ok(several) => Err(format!(
                "the VM has {} NICs: leave --tap out, and the taps of all are found",
                several.len()
            )),
            Err(why) => Err(why.clone()),
        };
        return Ok(taps
            .next()
            .map(|(tap, netns)| (tap, netns, mac))
            .into_iter()
            .collect());
    }
    let descriptors = match qemu_pid {
        Some(pid) => discover::Process::read(pid)?.taps,
        None => Vec::new(),
    };
    let ask = command::HumanMonitorCommand {
        command_line: "info network",
    };
    let told = qmp
        .execute(ask)
        .await
        .doing("ask for the taps of the VM's NICs")?;
    let cards = discover::cards(&told, &descriptors);
    let (all, known) = (macs.map_or(0, |macs| macs.len()), cards.len());
    if cards.is_empty() || known < all {
        let names: Vec<String> = taps.map(|(name, _)| name).collect();
        return Err(refused(format!(
            "the VM has {all} NICs whose Ethernet address can be read, and QEMU has the taps {} open: which belongs to which can be told \
             of {known} only. Every NIC needs a tap; if only one tap is the VM's, name it with --tap",
            names.join(", ")
        )));
    }
    let mut taps: Vec<(String, NetNs)> = taps.collect();
    let mut behind = Vec::new();
    for card in cards {
        if let Some(at) = taps.iter().position(|(name, _)| *name == card.tap) {
            let (tap, netns) = taps.swap_remove(at);
            behind.push((tap, netns, Ok(card.mac)));
        }
    }
    Ok(behind)
}

/// The Ethernet addresses of the VM's cards, or why they can't be told.
async fn macs(qmp: &Qmp) -> Result<Vec<MacAddr>, String> {
    let filters = qmp.execute(command::QueryRxFilter::default()).await;
    let filters = filters.map_err(|error| chain(&error))?;
    let mut macs: Vec<MacAddr> = Vec::new();
    for mac in filters.iter().filter_map(|f| f.main_mac.parse().ok()) {
        // A card with several queues is told several times.
        if !macs.contains(&mac) {
            macs.push(mac);
        }
    }
    Ok(macs)
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
