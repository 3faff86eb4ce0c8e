//! One line of the result.

use serde::Serialize;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    Kernel,
    Privileges,
    Qemu,
    Wiring,
    Path,
    Port,
    Buffer,
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// It works, at the cost that the advice tells.
    Degraded,
    /// It does not work; the advice says what to do.
    Missing,
    /// It could not be looked at; the advice says what that takes.
    Unchecked,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub area: Area,
    /// Stable: for programs.
    pub name: &'static str,
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What it costs or what to do; `None` when it is ok.
    pub advice: Option<String>,
}

impl Check {
    pub(super) fn ok(area: Area, name: &'static str, found: impl Into<String>) -> Self {
        Self {
            area,
            name,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    pub(super) fn degraded(
        area: Area,
        name: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
    ) -> Self {
        Self::with(Status::Degraded, area, name, found.into(), cost.into())
    }

    pub(super) fn missing(
        area: Area,
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::with(Status::Missing, area, name, found.into(), remedy.into())
    }

    pub(super) fn unchecked(
        area: Area,
        name: &'static str,
        why: impl Into<String>,
        takes: impl Into<String>,
    ) -> Self {
        Self::with(Status::Unchecked, area, name, why.into(), takes.into())
    }

    fn with(status: Status, area: Area, name: &'static str, found: String, advice: String) -> Self {
        Self {
            area,
            name,
            status,
            found,
            advice: Some(advice),
        }
    }
}
