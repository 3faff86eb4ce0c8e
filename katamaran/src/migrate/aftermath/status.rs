//! The sessions of this node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::journal::{self, DIRECTORY, Found, Standing};
use crate::migrate::error::{MigrateError, chain};
use crate::role::Role;
use crate::session_id::SessionId;

/// All of them, oldest first.
#[derive(Debug, Serialize)]
pub struct Status {
    sessions: Vec<Session>,
    /// Journals that can't be read, and why.
    unreadable: Vec<Unreadable>,
}

#[derive(Debug, Serialize)]
struct Session {
    session: SessionId,
    role: Role,
    /// `living`, `dead`, `undecided`, `settled`
    state: &'static str,
    standing: Standing,
    phase: Option<String>,
    vm: Vec<IpAddr>,
    peer: String,
    since: Option<String>,
    pid: u32,
    qmp: PathBuf,
}

#[derive(Debug, Serialize)]
struct Unreadable {
    journal: PathBuf,
    error: String,
}

/// Reads the journals; changes nothing.
///
/// # Errors
/// They can't be listed.
pub fn status() -> Result<Status, MigrateError> {
    let mut status = Status {
        sessions: Vec::new(),
        unreadable: Vec::new(),
    };
    let directory = Path::new(DIRECTORY);
    for found in journal::list(directory)?
        .into_iter()
        .chain(journal::settled(directory)?)
    {
        status.add(found);
    }
    Ok(status)
}

impl Status {
    fn add(&mut self, found: Found) {
        let story = match found.story {
            Ok(story) => story,
            Err(error) => {
                let error = chain(&error);
                let journal = found.path;
                return self.unreadable.push(Unreadable { journal, error });
            }
        };
        let state = match (found.living, found.settled, story.is_undecided()) {
            (true, _, _) => "living",
            (false, true, _) => "settled",
            (false, false, true) => "undecided",
            (false, false, false) => "dead",
        };
        self.sessions.push(Session {
            session: story.header.session,
            role: story.header.role,
            state,
            standing: story.standing(),
            phase: story.phase().map(str::to_owned),
            vm: story.header.vm,
            peer: story.header.peer,
            since: DateTime::from_timestamp_micros(story.since_us)
                .map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            pid: story.header.pid,
            qmp: story.header.qmp,
        });
    }

    /// For people.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if self.sessions.is_empty() && self.unreadable.is_empty() {
            return "no session on this node\n".to_owned();
        }
        for session in &self.sessions {
            text.push_str(&session.render());
        }
        for unreadable in &self.unreadable {
            text.push_str(&format!(
                "{}: {}\n",
                unreadable.journal.display(),
                unreadable.error
            ));
        }
        text
    }
}

impl Session {
    fn render(&self) -> String {
        let vm: Vec<String> = self.vm.iter().map(ToString::to_string).collect();
        let towards = match self.role {
            Role::Source => "to",
            Role::Destination => "from",
        };
        let next = match self.state {
            "dead" => "; `katamaran cleanup` says what it left".to_owned(),
            "undecided" => format!("; settle it with `katamaran resolve {}`", self.session),
            _ => String::new(),
        };
        format!(
            "{} {} {}: VM {} {towards} {}, phase {}, since {}, pid {}{next}\n",
            self.session,
            self.role,
            self.state,
            vm.join(","),
            self.peer,
            self.phase.as_deref().unwrap_or("-"),
            self.since.as_deref().unwrap_or("-"),
            self.pid,
        )
    }
}
