//! All that was found, and what it comes to.

use serde::Serialize;

use super::check::{Check, Status};
use super::render;
use crate::config::PreflightConfig;
use crate::migrate::node::kernel_release;

/// Version of the JSON form, which is described in `docs/preflight.md`.
pub const SCHEMA: u32 = 1;

/// What the node was looked at as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Source,
    Destination,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub schema: u32,
    pub katamaran: &'static str,
    pub kernel: String,
    pub sides: Vec<Side>,
    /// Only the node was looked at, for want of flags.
    #[serde(skip)]
    pub(super) node_only: bool,
    /// The worst of all, `unchecked` aside.
    pub result: Status,
    pub checks: Vec<Check>,
}

impl Found {
    pub(super) fn new(config: &PreflightConfig) -> Self {
        let source = config.source.is_some().then_some(Side::Source);
        let destination = config.destination.is_some().then_some(Side::Destination);
        Self {
            schema: SCHEMA,
            katamaran: env!("CARGO_PKG_VERSION"),
            kernel: kernel_release(),
            sides: source.into_iter().chain(destination).collect(),
            node_only: config.is_node_only(),
            result: Status::Ok,
            checks: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, check: Check) {
        self.result = match (self.result, check.status) {
            (Status::Missing, _) | (_, Status::Missing) => Status::Missing,
            (Status::Degraded, _) | (_, Status::Degraded) => Status::Degraded,
            _ => Status::Ok,
        };
        self.checks.push(check);
    }

    /// How many lines stand like this.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }

    /// Nothing is missing; `strict`: nor degraded, nor unchecked.
    #[must_use]
    pub fn is_fit(&self, strict: bool) -> bool {
        self.checks.iter().all(|check| match check.status {
            Status::Ok => true,
            Status::Degraded | Status::Unchecked => !strict,
            Status::Missing => false,
        })
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("strings and numbers have a JSON form");
        text.push('\n');
        text
    }

    /// For people, in 80 columns.
    #[must_use]
    pub fn render(&self) -> String {
        render::render(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Area;
    use super::*;

    fn found(checks: Vec<Check>) -> Found {
        let mut found = Found {
            schema: SCHEMA,
            katamaran: "0",
            kernel: "6".into(),
            sides: vec![Side::Source],
            node_only: false,
            result: Status::Ok,
            checks: Vec::new(),
        };
        checks.into_iter().for_each(|check| found.push(check));
        found
    }

    #[test]
    fn the_result_is_the_worst_and_only_what_is_missing_is_unfit() {
        let ok = || Check::ok(Area::Kernel, "a", "there");
        let degraded = || Check::degraded(Area::Kernel, "b", "old", "slow");
        let missing = || Check::missing(Area::Kernel, "c", "gone", "get it");
        let unchecked = || Check::unchecked(Area::Kernel, "d", "dark", "a light");
        for (checks, result, fit, strictly_fit) in [
            (vec![ok()], Status::Ok, true, true),
            (vec![ok(), unchecked()], Status::Ok, true, false),
            (vec![degraded(), ok()], Status::Degraded, true, false),
            (
                vec![degraded(), missing(), ok()],
                Status::Missing,
                false,
                false,
            ),
        ] {
            let found = found(checks);
            assert_eq!(found.result, result);
            assert_eq!(
                (found.is_fit(false), found.is_fit(true)),
                (fit, strictly_fit)
            );
        }
    }

    #[test]
    fn the_json_is_what_the_schema_promises() {
        let found = found(vec![
            Check::ok(Area::Kernel, "release", "6.18"),
            Check::missing(Area::Port, "listen", "taken", "free it"),
        ]);
        let json: serde_json::Value = serde_json::from_str(&found.json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "schema": 1, "katamaran": "0", "kernel": "6", "sides": ["source"], "result": "missing",
                "checks": [
                    {"area": "kernel", "name": "release", "status": "ok", "found": "6.18", "advice": null},
                    {"area": "port", "name": "listen", "status": "missing", "found": "taken", "advice": "free it"},
                ],
            })
        );
    }
}
