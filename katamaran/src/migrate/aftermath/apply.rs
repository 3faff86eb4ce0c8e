//! Does what was decided.

use std::iter::from_fn;
use std::path::Path;
use std::time::{Duration, Instant};

use super::decide::Deed;
use super::found::{Cleaned, Told};
use super::look::{Seen, SeenTap};
use crate::deadline;
use crate::ebpf::{self, ArmedHooks, Counter, EbpfError, LeftBehind, armed_hooks};
use crate::journal::{Found, Record, Story, adopt};
use crate::migrate::diary::Diary;
use crate::migrate::error::chain;
use crate::migrate::put_back::{self, PutBack};
use crate::migrate::quiet::until_quiet;
use crate::migrate::source::storage::remove_all;
use crate::migrate::storage::Side;
use crate::migrate::storage::export::Exports;
use crate::net::NetNs;
use crate::net::qdisc::PlugQdisc;
use crate::qmp::Qmp;
use crate::qmp::command::{
    AnnounceSelf, Cont, MigrateCancel, MigrateSetCapabilities, MigrateSetParameters, QueryMigrate,
    QueryStatus, Quit, RunState,
};
use crate::role::Role;
use crate::session_id::SessionId;

const POLL: Duration = Duration::from_millis(5);
/// A session has filters in two namespaces at most, and each round takes off what comes first in one of them.
const ROUNDS: usize = 8;

/// A dead session, and the ways to what it left.
pub(super) struct Context<'a> {
    pub(super) story: &'a Story,
    /// Where that story goes on.
    pub(super) diary: Diary,
    pub(super) seen: Seen,
}

impl Context<'_> {
    pub(super) async fn carry_out(&self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::RemoveMirrors => {
                let removed = remove_all(self.qmp()?, &self.diary).await;
                removed.map_err(|e| chain(&e))
            }
            Deed::CancelMigration => self.cancel_migration().await,
            Deed::ReturnPackets => self.return_packets().await,
            Deed::AwaitQuiet { limit } => self.await_quiet(*limit).await,
            Deed::RemovePrograms => self.remove_programs().await,
            Deed::ResumeVm => self.resume().await,
            Deed::RestoreQemu => self.restore_qemu().await,
            Deed::RemoveExports => {
                let exports = Exports::new(self.qmp()?.clone(), self.side());
                exports.close_left_behind().await.map_err(|e| chain(&e))
            }
            Deed::EndQemu => self.end_qemu().await,
            Deed::OpenPlug => {
                for plug in self.plugs().await? {
                    plug.keep().await.map_err(|e| chain(&e))?;
                }
                Ok(())
            }
            Deed::RemovePlug => {
                for plug in self.plugs().await? {
                    let removed = plug.remove(deadline::NETLINK).await;
                    removed.map_err(|e| chain(&e))?;
                }
                Ok(())
            }
            Deed::ShortenRing { nic, to } => self.shorten_ring(*nic, *to).await,
            Deed::RemoveDevice(name) => self.remove_device(name).await,
            Deed::RemoveDirectory(path) => gone(std::fs::remove_dir_all(path), path),
        }
    }

    fn qmp(&self) -> Result<&Qmp, String> {
        self.seen.qmp.as_ref().ok_or_else(|| "QEMU is gone".into())
    }

    fn side(&self) -> Side {
        match self.story.header.role {
            Role::Source => Side::Source,
            Role::Destination => Side::Destination,
        }
    }

    async fn cancel_migration(&self) -> Result<(), String> {
        let qmp = self.qmp()?;
        qmp.execute(MigrateCancel).await.map_err(|e| chain(&e))?;
        let end = Instant::now() + deadline::QMP_RUN_STATE;
        loop {
            let info = qmp.execute(QueryMigrate).await.map_err(|e| chain(&e))?;
            match info.status {
                Some(status) if !status.is_final() => {
                    if Instant::now() >= end {
                        return Err(format!("it is still {status}"));
                    }
                    tokio::time::sleep(POLL).await;
                }
                _ => return Ok(()),
            }
        }
    }

    async fn resume(&self) -> Result<(), String> {
        let qmp = self.qmp()?;
        let running = async || {
            let status = qmp.execute(QueryStatus).await.map_err(|e| chain(&e))?;
            Ok::<_, String>(status)
        };
        // A migration that is cancelled may have let it run by itself.
        if running().await?.running {
            return Ok(());
        }
        qmp.execute(Cont).await.map_err(|e| chain(&e))?;
        let status = running().await?;
        if !status.running {
            return Err(format!("the VM is still {}", status.status));
        }
        if self.story.header.role == Role::Destination
            && let Err(error) = qmp.execute(AnnounceSelf::default()).await
        {
            tracing::warn!(
                error = chain(&error),
                "the VM runs, and could not be announced"
            );
        }
        Ok(())
    }

    async fn restore_qemu(&self) -> Result<(), String> {
        let qmp = self.qmp()?;
        for record in &self.story.records {
            let Record::QemuSettings {
                capabilities,
                parameters,
            } = record
            else {
                continue;
            };
            let capabilities =
                serde_json::from_value(capabilities.clone()).map_err(|e| chain(&e))?;
            let parameters = MigrateSetParameters {
                parameters: serde_json::from_value(parameters.clone()).map_err(|e| chain(&e))?,
            };
            let restore = MigrateSetCapabilities { capabilities };
            qmp.execute(restore).await.map_err(|e| chain(&e))?;
            qmp.execute(parameters).await.map_err(|e| chain(&e))?;
        }
        Ok(())
    }

    /// Returns when the process is gone: until then nobody may believe that it is.
    async fn end_qemu(&self) -> Result<(), String> {
        let qmp = self.qmp()?;
        let status = qmp.execute(QueryStatus).await;
        if status.is_ok_and(|status| status.running || status.status == RunState::Running) {
            return Err("the VM runs: it is not ended".to_owned());
        }
        if let Err(error) = qmp.execute(Quit).await
            && !error.is_closed()
        {
            return Err(chain(&error));
        }
        let end = Instant::now() + deadline::QMP_RUN_STATE;
        while self.story.header.qemu.is_some_and(|qemu| qemu.exists()) {
            if Instant::now() >= end {
                return Err("it was told to quit, and is still there".to_owned());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn return_packets(&self) -> Result<(), String> {
        for tap in &self.seen.taps {
            self.return_packets_to(tap).await?;
        }
        Ok(())
    }

    /// In the order in which they came: what comes directly comes after them.
    async fn return_packets_to(&self, tap: &SeenTap) -> Result<(), String> {
        let id = self.story.header.session.of_nic(tap.nic);
        let Some(mut left) = LeftBehind::find(id).map_err(|e| chain(&e))? else {
            return Ok(());
        };
        let mut into = PutBack::open(&tap.netns, tap.index, async || self.resume().await)?;
        let mut returned = 0;
        // More come meanwhile.
        for _ in 0..put_back::ROUNDS {
            let frames = into.all(from_fn(|| left.next_retained())).await?;
            returned += frames;
            if frames <= put_back::FEW {
                break;
            }
        }
        left.unflip().map_err(|e| chain(&e))?;
        // At once, for what comes next is ahead of them.
        returned += into.all(from_fn(|| left.next_retained())).await?;
        ebpf::settle();
        returned += into.all(from_fn(|| left.next_retained())).await?;
        if let Some(hooks) = self
            .armed_hooks()?
            .iter()
            .find(|hooks| hooks.session() == id)
        {
            let redirected = hooks.count(Counter::Redirected).map_err(|e| chain(&e))?;
            if redirected.packets != returned {
                tracing::warn!(
                    session = %self.story.header.session,
                    "{} packets were redirected, and copies of {returned} were here to be put back",
                    redirected.packets
                );
            }
        }
        Ok(())
    }

    /// The session's programs that count: of each network card.
    fn armed_hooks(&self) -> Result<Vec<ArmedHooks>, String> {
        let header = &self.story.header;
        let mut all = armed_hooks().map_err(|e| chain(&e))?;
        all.retain(|hooks| {
            hooks.role() == header.role && header.ids().any(|id| id == hooks.session())
        });
        Ok(all)
    }

    /// As a living session does it: in the end the programs go, and it is told what that means.
    async fn await_quiet(&self, limit: Duration) -> Result<(), String> {
        let hooks = self.armed_hooks()?;
        if hooks.is_empty() {
            return Ok(());
        }
        let session = self.story.header.session;
        let (counter, how) = match self.story.header.role {
            Role::Source => (Counter::Arrived, "still come here, and are sent to it"),
            Role::Destination => (Counter::Tunnelled, "still come through the tunnel"),
        };
        let count = |hooks: &ArmedHooks| Some(hooks.count(counter).ok()?.packets);
        let arrived = || hooks.iter().map(count).sum();
        let tell = |_| {
            tracing::warn!(
                %session,
                "packets for the VM {how}: waiting until the network sends them to the destination by itself, {} s at most",
                limit.as_secs()
            );
        };
        if !until_quiet(deadline::QUIET, limit, arrived, tell).await {
            tracing::warn!(
                %session,
                "packets for the VM {how} after {} s: the network does not send them to the destination yet, and they are lost from now on",
                limit.as_secs()
            );
        }
        Ok(())
    }

    async fn remove_programs(&self) -> Result<(), String> {
        let header = &self.story.header;
        let taps = self.seen.taps.iter().map(|tap| &tap.netns);
        let places: Vec<NetNs> = self.seen.netns.iter().chain(taps).cloned().collect();
        for id in header.ids() {
            remove_programs(id, header.role, places.clone()).await?;
        }
        Ok(())
    }

    /// A tap may have gone with its QEMU.
    async fn plugs(&self) -> Result<Vec<PlugQdisc>, String> {
        let mut plugs = Vec::new();
        for tap in &self.seen.taps {
            match PlugQdisc::left_behind(&tap.netlink, tap.index).await {
                Err(error) if error.already_gone() => {}
                other => plugs.extend(other.map_err(|e| chain(&e))?),
            }
        }
        Ok(plugs)
    }

    async fn shorten_ring(&self, nic: usize, to: u32) -> Result<(), String> {
        let Some(tap) = self.seen.taps.iter().find(|tap| tap.nic == nic) else {
            return Ok(());
        };
        match tap.netlink.set_txqlen(tap.index, to).await {
            Err(error) if error.already_gone() => Ok(()),
            other => other.map_err(|e| chain(&e)),
        }
    }

    async fn remove_device(&self, name: &str) -> Result<(), String> {
        let Some(netns) = &self.seen.netns else {
            return Ok(());
        };
        let netlink = netns.netlink().map_err(|e| chain(&e))?;
        let removed = match netlink.link_by_name(name).await {
            Ok(link) => netlink.delete_link(link.index).await,
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.already_gone() => Ok(()),
            other => other.map_err(|e| chain(&e)),
        }
    }
}

fn gone(removed: std::io::Result<()>, path: &Path) -> Result<(), String> {
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| format!("{}: {e}", path.display())),
    }
}

/// Links come off anywhere, filters only in their own namespace.
async fn remove_programs(
    session: SessionId,
    role: Role,
    mut places: Vec<NetNs>,
) -> Result<(), String> {
    if places.is_empty() {
        places.push(NetNs::current().map_err(|e| chain(&e))?);
    }
    let removed = tokio::task::spawn_blocking(move || {
        let mut last = Ok(());
        for netns in places.iter().cycle().take(ROUNDS) {
            last = netns
                .run(|| ebpf::sweep_role(session, role))
                .map_err(|e| chain(&e))?
                .map_err(|error| match error {
                    EbpfError::OtherNamespace { .. } => Err(chain(&error)),
                    error => Ok(chain(&error)),
                });
            match last {
                Ok(()) => return Ok(()),
                Err(Ok(error)) => return Err(error),
                Err(Err(_)) => {}
            }
        }
        last.map_err(|error| error.unwrap_or_else(|elsewhere| elsewhere))
    });
    removed.await.map_err(|e| e.to_string())?
}

/// Pins without a journal: nothing is known but their session.
pub(super) async fn orphan(session: SessionId, role: Role, apply: bool) -> Cleaned {
    let mut cleaned = Cleaned::of(session, role, "no journal");
    let deed = Deed::RemovePrograms;
    cleaned.steps.push(match apply {
        false => Told::planned(&deed),
        true => Told::done(&deed, remove_programs(session, role, Vec::new()).await),
    });
    cleaned
}

/// What a destination keeps for a source that may ask.
pub(super) fn settled(found: Found, apply: bool) -> Cleaned {
    const WHAT: &str = "forget the receipt for the source";
    let story = match found.story {
        Ok(story) => story,
        Err(error) => return Cleaned::unreadable(&found.path, &error),
    };
    let mut cleaned = Cleaned::of(story.header.session, story.header.role, "settled");
    let forgotten = match (apply, adopt(&found.path)) {
        (false, _) => None,
        (true, Ok(Some((journal, _)))) => journal.remove().err().map(|e| chain(&e)),
        (true, Ok(None)) => Some("a process holds it".to_owned()),
        (true, Err(error)) => Some(chain(&error)),
    };
    cleaned.steps.push(Told {
        what: WHAT.to_owned(),
        done: apply && forgotten.is_none(),
        error: forgotten,
    });
    cleaned
}
