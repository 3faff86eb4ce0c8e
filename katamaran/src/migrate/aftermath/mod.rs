//! After a crash of katamaran itself: what it left on this node, who has the VM, and how to get rid of the rest.
//!
//! The [`journal`] says how far the dead session came. What is left is *looked for*, by our names in the kernel and in
//! QEMU; the journal adds what can't be seen: how QEMU was set before, and who stopped the VM.
//!
//! | the journal says | source | destination |
//! |---|---|---|
//! | before COMMIT | the migration is cancelled, the redirect goes, the VM runs here | a QEMU that was to receive the VM is ended |
//! | COMMIT sent, received | **undecided**: left alone, but for a QEMU that is gone | the same, but for a VM that runs |
//! | the VM runs on the destination | its QEMU is ended (unless `--source-vm keep`) | the plug is opened, the rest removed |
//!
//! A QEMU is touched only if it is the very process that the session used. A living session is never touched.

mod apply;
mod decide;
mod found;
mod look;
#[cfg(test)]
mod model;
mod quitting;
mod resolve;
mod settle;
mod status;
#[cfg(test)]
mod testing;

use std::path::Path;

pub use found::{Cleaned, Cleanup, Told};
pub use quitting::last_words;
pub use resolve::{Resolved, resolve};
pub use settle::Answer;
pub use status::{Status, status};

use self::decide::{Deed, decide};
use super::diary::Diary;
use super::error::{MigrateError, chain};
use super::node::{Node, refused};
use crate::ebpf;
use crate::journal::{self, DIRECTORY, Found, Journal, Record, Standing, Story};
use crate::role::Role;
use crate::session_id::SessionId;

/// What a clean-up is to do.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Remove it; else it is only said what would be removed.
    pub apply: bool,
    /// Only this session.
    pub session: Option<SessionId>,
    /// Also receipts of this session.
    pub forget: bool,
}

/// Looks for what dead sessions have left, and removes it if told to.
///
/// # Errors
/// The journals can't be listed.
pub async fn cleanup(wanted: Wanted) -> Result<Cleanup, MigrateError> {
    let Wanted {
        apply,
        session: only,
        forget,
    } = wanted;
    let mut sessions = Vec::new();
    let mut journals = Vec::new();
    for found in journal::list(Path::new(DIRECTORY))? {
        if let Ok(story) = &found.story {
            journals.extend(story.header.ids().map(|id| (id, story.header.role)));
        }
        let wanted = match &found.story {
            Ok(story) => only.is_none_or(|only| only == story.header.session),
            Err(_) => only.is_none(),
        };
        if wanted {
            sessions.push(clean(found, apply).await);
        }
    }
    for (session, role) in stale_pins()? {
        if !journals.contains(&(session, role)) && only.is_none_or(|only| only == session) {
            sessions.push(apply::orphan(session, role, apply).await);
        }
    }
    if only.is_some() && forget {
        for found in journal::settled(Path::new(DIRECTORY))? {
            if found.story.as_ref().ok().map(|s| s.header.session) == only {
                sessions.push(apply::settled(found, apply));
            }
        }
    }
    Ok(Cleanup { apply, sessions })
}

fn stale_pins() -> Result<Vec<(SessionId, Role)>, MigrateError> {
    ebpf::stale_roles().map_err(|source| MigrateError::Ebpf {
        doing: "list what is pinned",
        source: Box::new(source),
    })
}

/// One session: taken over if nobody lives to look after it.
async fn clean(found: Found, apply: bool) -> Cleaned {
    let path = found.path.clone();
    let story = match found.story {
        Ok(story) => story,
        Err(error) => return Cleaned::unreadable(&path, &error),
    };
    if found.living {
        let living = format!("process {} looks after it", story.header.pid);
        return Cleaned::left_alone(&story, "living", living, false);
    }
    match journal::adopt(&path) {
        Ok(Some((journal, story))) => clean_dead(&journal, story, apply).await,
        Ok(None) => Cleaned::left_alone(
            &story,
            "dead",
            "somebody else is at work on it".into(),
            true,
        ),
        Err(error) => Cleaned::unreadable(&path, &error),
    }
}

/// A dead session that is ours now.
async fn clean_dead(journal: &Journal, story: Story, apply: bool) -> Cleaned {
    let seen = match look::look(&story).await {
        Ok(seen) => seen,
        Err(why) => return Cleaned::left_alone(&story, "dead", why, true),
    };
    let deeds = match decide(&story, &seen.facts) {
        Ok(deeds) => deeds,
        Err(why) => {
            let state = match story.is_undecided() {
                true => "undecided",
                false => "dead",
            };
            return Cleaned::left_alone(&story, state, why, true);
        }
    };
    let mut cleaned = Cleaned::dead(&story);
    if !apply {
        cleaned.steps = deeds.iter().map(Told::planned).collect();
        return cleaned;
    }
    let context = apply::Context {
        story: &story,
        diary: Diary::of(journal.clone()),
        seen,
    };
    for deed in &deeds {
        let done = context.carry_out(deed).await;
        cleaned.steps.push(Told::done(deed, done));
    }
    if cleaned.is_left() {
        return cleaned;
    }
    if let Err(error) = end(journal, &story, context.seen.facts.runs_here()) {
        cleaned
            .steps
            .push(Told::failed("remove the journal", chain(&error)));
    }
    cleaned
}

/// The VM runs here: what holds its packets back goes, the programs that deliver them stay. `None` where there are none.
async fn open_way(journal: &Journal, story: &Story) -> Option<Cleaned> {
    let seen = look::look(story).await.ok()?;
    if !seen.facts.programs {
        return None;
    }
    let mut cleaned = Cleaned::dead(story);
    if seen.facts.plug {
        let context = apply::Context {
            story,
            diary: Diary::of(journal.clone()),
            seen,
        };
        let done = context.carry_out(&Deed::OpenPlug).await;
        cleaned.steps.push(Told::done(&Deed::OpenPlug, done));
    }
    Some(cleaned)
}

/// A destination's journal is kept where the source may ask for what is in it.
fn end(journal: &Journal, story: &Story, runs_here: bool) -> Result<(), MigrateError> {
    if !story.source_may_ask() {
        return Ok(journal.remove()?);
    }
    if let Some(record) = last_record(story.standing(), runs_here) {
        journal.append(&record)?;
    }
    Ok(journal.settle()?)
}

/// What the clean-up of a destination decides.
fn last_record(standing: Standing, runs_here: bool) -> Option<Record> {
    match standing {
        Standing::BeforeCommit => Some(Record::Discarded),
        Standing::CommitReceived if runs_here => Some(Record::Running),
        Standing::CommitReceived
        | Standing::Running
        | Standing::Discarded
        | Standing::CommitSent => None,
    }
}

/// Before a migration begins: what dead sessions of this VM left is removed.
///
/// # Errors
/// A session of this VM lives, or is undecided, or something of it can't be removed. The message names the command to run.
pub(crate) async fn clear_the_way(qmp: &Path) -> Result<(), MigrateError> {
    let qmp = std::path::absolute(qmp).unwrap_or_else(|_| qmp.to_owned());
    clear(|story| story.header.qmp == qmp).await
}

/// The same for sessions that had the VM's tap, under another QEMU.
///
/// # Errors
/// As [`clear_the_way`].
pub(crate) async fn clear_the_tap(node: &Node) -> Result<(), MigrateError> {
    clear(|story| {
        story.header.taps().any(|tap| {
            node.nics.iter().any(|nic| {
                let (index, netns) = (nic.tap.index, nic.tap_netns.inode());
                tap.index == index && tap.netns == netns && tap.name == nic.tap.name
            })
        })
    })
    .await
}

async fn clear(is_ours: impl Fn(&Story) -> bool) -> Result<(), MigrateError> {
    for found in journal::list(Path::new(DIRECTORY))? {
        let Ok(story) = &found.story else { continue };
        if !is_ours(story) {
            continue;
        }
        let (session, living) = (story.header.session, found.living);
        let cleaned = clean(found, true).await;
        if living {
            let why = cleaned.left_alone.unwrap_or_default();
            return Err(refused(format!(
                "this VM is in migration {session} already: {why} (see `katamaran status`)"
            )));
        }
        if cleaned.is_left() {
            return Err(refused(format!(
                "migration {session} of this VM died and left something behind:\n{}",
                cleaned.render(true)
            )));
        }
        tracing::info!(%session, steps = cleaned.steps.len(), "removed what a dead migration of this VM had left");
    }
    Ok(())
}
