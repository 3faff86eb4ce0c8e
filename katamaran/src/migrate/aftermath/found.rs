//! What a clean-up tells, for people and for programs.

use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::decide::Deed;
use crate::journal::{JournalError, Story};
use crate::migrate::error::chain;
use crate::role::Role;
use crate::session_id::SessionId;

/// What all dead sessions left.
#[derive(Debug, Serialize)]
pub struct Cleanup {
    /// Whether it was removed, or only looked for.
    pub apply: bool,
    /// Session by session.
    pub sessions: Vec<Cleaned>,
}

/// What one session left.
#[derive(Debug, Serialize)]
pub struct Cleaned {
    /// Absent where the journal can't be read.
    pub session: Option<SessionId>,
    /// Which end this node was.
    pub role: Option<Role>,
    /// The journal, where that is all that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<PathBuf>,
    /// `living`, `dead`, `undecided`, `settled`, `unreadable`, `no journal`.
    pub state: &'static str,
    /// Why nothing is done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_alone: Option<String>,
    /// What is to be done, or was.
    pub steps: Vec<Told>,
    /// Nobody looks after what is left here.
    #[serde(skip)]
    unattended: bool,
}

/// One thing to do.
#[derive(Debug, Serialize)]
pub struct Told {
    /// What.
    pub what: String,
    /// Whether it is done.
    pub done: bool,
    /// Why it could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Told {
    pub(super) fn planned(deed: &Deed) -> Self {
        Self {
            what: deed.to_string(),
            done: false,
            error: None,
        }
    }

    pub(super) fn done(deed: &Deed, result: Result<(), String>) -> Self {
        Self {
            what: deed.to_string(),
            done: result.is_ok(),
            error: result.err(),
        }
    }

    pub(super) fn failed(what: impl Display, error: String) -> Self {
        Self {
            what: what.to_string(),
            done: false,
            error: Some(error),
        }
    }
}

impl Cleanup {
    /// Whether anything is left that nobody looks after.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.sessions.iter().any(Cleaned::is_left)
    }

    /// For people.
    #[must_use]
    pub fn render(&self) -> String {
        if self.sessions.is_empty() {
            return "nothing is left on this node\n".to_owned();
        }
        let mut text: String = self.sessions.iter().map(|s| s.render(self.apply)).collect();
        if !self.apply && self.sessions.iter().any(|s| !s.steps.is_empty()) {
            text.push_str("nothing was changed: add --apply\n");
        }
        text
    }
}

impl Cleaned {
    pub(super) fn dead(story: &Story) -> Self {
        Self::of(story.header.session, story.header.role, "dead")
    }

    pub(super) fn of(session: SessionId, role: Role, state: &'static str) -> Self {
        Self {
            session: Some(session),
            role: Some(role),
            journal: None,
            state,
            left_alone: None,
            steps: Vec::new(),
            unattended: false,
        }
    }

    pub(super) fn left_alone(
        story: &Story,
        state: &'static str,
        why: String,
        unattended: bool,
    ) -> Self {
        Self {
            left_alone: Some(why),
            unattended,
            ..Self::of(story.header.session, story.header.role, state)
        }
    }

    pub(super) fn unreadable(path: &Path, error: &JournalError) -> Self {
        Self {
            session: None,
            role: None,
            journal: Some(path.to_owned()),
            state: "unreadable",
            left_alone: Some(chain(error)),
            steps: Vec::new(),
            unattended: true,
        }
    }

    /// Whether anything is left that nobody looks after.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.unattended || self.steps.iter().any(|step| !step.done)
    }

    /// For people; `apply` says whether the steps were tried.
    #[must_use]
    pub fn render(&self, apply: bool) -> String {
        let mut text = match (self.session, self.role, &self.journal) {
            (Some(session), Some(role), _) => {
                format!("session {session}, {role}, {}", self.state)
            }
            (_, _, Some(path)) => format!("{}, {}", path.display(), self.state),
            _ => self.state.to_owned(),
        };
        if let Some(why) = &self.left_alone {
            text.push_str(&format!(": left alone: {why}"));
        }
        text.push('\n');
        for step in &self.steps {
            let mark = match (apply, step.done) {
                (false, _) => "would",
                (true, true) => "done:",
                (true, false) => "FAILED:",
            };
            // Writing to a string can't fail.
            if let Some(error) = &step.error {
                writeln!(text, "  {mark} {}: {error}", step.what).ok();
            } else {
                writeln!(text, "  {mark} {}", step.what).ok();
            }
        }
        text
    }
}
