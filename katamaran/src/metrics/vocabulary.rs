//! The values that labels take.

/// All values of `role`.
pub(super) const ROLES: [&str; 2] = ["source", "destination"];

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The VM runs on the destination.
    Success,
    /// The VM runs on the source, because something failed.
    Failed,
    /// The VM runs on the source, because it took too long.
    Timeout,
    /// The VM runs on the source, because somebody asked for it.
    Cancelled,
    /// COMMIT was sent and not answered: an operator has to look.
    Undecided,
    /// Refused before anything was touched: not a migration, counted apart.
    Refused,
}

impl Outcome {
    /// Value of `result`; a refusal has none.
    pub(super) fn result(self) -> Option<&'static str> {
        match self {
            Self::Success => Some("success"),
            Self::Failed => Some("failed"),
            Self::Timeout => Some("timeout"),
            Self::Cancelled => Some("cancelled"),
            Self::Undecided => Some("undecided"),
            Self::Refused => None,
        }
    }
}

/// `result` of a migration whose katamaran is gone without a word; the next one that writes the same
/// file counts it.
pub(super) const CRASHED: &str = "crashed";

/// All values of `result`.
pub(super) const RESULTS: [&str; 6] = [
    "success",
    "failed",
    "timeout",
    "cancelled",
    "undecided",
    CRASHED,
];

/// What the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Proven,
    Violated,
    Unproven,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Violated => "violated",
            Self::Unproven => "unproven",
        }
    }
}

/// All values of `verdict`.
pub(super) const VERDICTS: [&str; 3] = ["proven", "violated", "unproven"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;

    #[test]
    fn every_value_is_listed() {
        for role in [Role::Source, Role::Destination] {
            assert!(ROLES.contains(&role.name()));
        }
        for outcome in [
            Outcome::Success,
            Outcome::Failed,
            Outcome::Timeout,
            Outcome::Cancelled,
            Outcome::Undecided,
        ] {
            assert!(RESULTS.contains(&outcome.result().unwrap()));
        }
        assert_eq!(Outcome::Refused.result(), None);
        for verdict in [Verdict::Proven, Verdict::Violated, Verdict::Unproven] {
            assert!(VERDICTS.contains(&verdict.name()));
        }
    }
}
