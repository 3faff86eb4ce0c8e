//! What the documentation says, held against the program: links lead somewhere, YAML parses, commands are
//! taken, PromQL asks for series that exist, every metric is listed.
//!
//! Needs nothing but the repository.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod commands;
mod guide;
mod links;
mod markdown;
mod metrics;
mod prometheus;
mod promql;
mod yaml;
