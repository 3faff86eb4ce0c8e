//! The operator, who does what the documentation says: looks (`status`), removes what dead sessions left (`cleanup`), and
//! settles what is undecided (`resolve`), on the destination first.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::copies::ran_on_b;
use super::play::LAST_WORDS;
use crate::lab::Node;
use crate::run::katamaran::katamaran_command;
use crate::run::stage::Stage;
use crate::run::timeline::Timeline;

/// Each round of looks settles something.
const ROUNDS: usize = 6;

/// What the operator did.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// In few words.
    pub(super) deeds: Vec<&'static str>,
    pub(super) problems: Vec<String>,
}

/// Settles a session on both nodes.
pub(super) fn settle(stage: &mut Stage, session: &str, timeline: &mut Timeline) -> Result<Settled> {
    let mut settled = Settled::default();
    for _ in 0..ROUNDS {
        let source = state(stage, Node::A, session)?;
        let dest = state(stage, Node::B, session)?;
        let undecided = [&source, &dest].map(|state| state.as_deref() == Some("undecided"));
        let dead = [&source, &dest].map(|state| state.as_deref() == Some("dead"));
        if undecided.contains(&true) {
            let done = resolve(stage, session, undecided[0], timeline, &mut settled)?;
            if !done {
                return Ok(settled);
            }
        } else if dead[1] {
            clean_up(stage, Node::B, session, &mut settled)?;
        } else if dead[0] {
            clean_up(stage, Node::A, session, &mut settled)?;
        } else {
            return Ok(settled);
        }
    }
    let problem = format!("not settled after {ROUNDS} rounds of {:?}", settled.deeds);
    settled.problems.push(problem);
    Ok(settled)
}

/// What `katamaran status` says of a session on a node. The two nodes share one /run here: the role tells them apart.
fn state(stage: &Stage, node: Node, session: &str) -> Result<Option<String>> {
    let output = katamaran_command(stage, node, &["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("katamaran status says {error}")
    })?;
    let role = match node {
        Node::A => "source",
        Node::B => "destination",
    };
    let mut sessions = status["sessions"].as_array().into_iter().flatten();
    let ours = sessions.find(|s| s["session"] == session && s["role"] == role);
    Ok(ours.and_then(|s| Some(s["state"].as_str()?.to_owned())))
}

fn clean_up(stage: &Stage, node: Node, session: &str, settled: &mut Settled) -> Result<()> {
    let apply = ["cleanup", "--apply", "--session", session];
    let (status, told) = run(stage, node, &apply)?;
    settled.deeds.push("cleanup");
    if status != Some(0) {
        settled
            .problems
            .push(format!("cleanup on {node:?}: {told}"));
    }
    Ok(())
}

/// Asks the destination, and tells the source what it said. Returns whether that settled it.
fn resolve(
    stage: &mut Stage,
    session: &str,
    source_asks: bool,
    timeline: &mut Timeline,
    settled: &mut Settled,
) -> Result<bool> {
    let (mut status, mut told) = run(stage, Node::B, &["resolve", session])?;
    settled.deeds.push("resolve");
    if told.contains("--discard") {
        let choice = match told.contains("--run") {
            true => "--run",
            false => "--discard",
        };
        settled.deeds.push(choice);
        (status, told) = run(stage, Node::B, &["resolve", session, choice])?;
        // The network learns where it runs while the operator goes over to the other node.
        stage.watch(timeline, LAST_WORDS, Duration::ZERO)?;
    }
    if status != Some(0) {
        let problem = format!("resolve on B exits with {status:?}: {told}");
        settled.problems.push(problem);
        return Ok(false);
    }
    let command = told.lines().map(str::trim);
    let mut commands = command.filter_map(|line| line.strip_prefix("katamaran "));
    let Some(answer) = commands.find(|command| command.starts_with("resolve ")) else {
        let problem = format!("resolve on B gives no receipt: {told}");
        settled.problems.push(problem);
        return Ok(false);
    };
    if source_asks {
        let words: Vec<&str> = answer.split_whitespace().collect();
        settled.deeds.push(match ran_on_b(timeline) {
            true => "receipt (runs)",
            false => "receipt",
        });
        let (status, told) = run(stage, Node::A, &words)?;
        if status != Some(0) {
            let problem = format!("`{answer}` on A exits with {status:?}: {told}");
            settled.problems.push(problem);
            return Ok(false);
        }
    }
    Ok(true)
}

fn run(stage: &Stage, node: Node, args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = katamaran_command(stage, node, args)?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.code(), text))
}
