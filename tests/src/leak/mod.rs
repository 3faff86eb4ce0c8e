//! Finds what was left behind: kernel objects, files and processes, before against after.
//!
//! A [`Snapshot`] is a set of lines for people; what differs between two of them is the leak. Left
//! out is what changes by itself: counters, link states, the kernel's own routes, its neighbours.
//!
//! BPF objects and files have no namespace. Their part of a snapshot covers the whole machine, so it
//! is only exact when nothing else on it uses them: see [`Scope`].

mod global;
mod namespace;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lab::Netns;

/// Between two looks at what the kernel may still be freeing.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub use self::global::session_files;

/// What a snapshot covers beside namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Also BPF objects, pins and files of the whole machine, and children of this program.
    Machine,
    /// Nothing: for tests that share the machine. See [`session_files`] for what is left of BPF then.
    NamespacesOnly,
}

/// What there is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the given namespaces and, depending on `scope`, at the machine.
    ///
    /// # Errors
    ///
    /// When a namespace can't be entered or something in it can't be listed.
    pub fn take<'a>(scope: Scope, places: impl IntoIterator<Item = &'a Netns>) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for netns in places {
            for line in namespace::lines(netns)? {
                lines.insert(format!("{}: {line}", netns.name()));
            }
        }
        if scope == Scope::Machine {
            lines.extend(global::files());
            lines.extend(global::children()?);
            lines.extend(global::bpf_objects()?);
        }
        Ok(Self { lines })
    }

    /// What is in `after` and not here (`+`), and the other way round (`-`).
    #[must_use]
    pub fn diff(&self, after: &Self) -> Vec<String> {
        let added = after
            .lines
            .difference(&self.lines)
            .map(|line| format!("+ {line}"));
        let gone = self
            .lines
            .difference(&after.lines)
            .map(|line| format!("- {line}"));
        added.chain(gone).collect()
    }

    /// Waits until things are again as they are here.
    ///
    /// The kernel frees BPF objects and devices some time after their last user is gone.
    ///
    /// # Errors
    ///
    /// With the list of differences when they persist until `deadline`.
    pub fn wait_until_restored<'a>(
        &self,
        scope: Scope,
        places: impl IntoIterator<Item = &'a Netns> + Clone,
        deadline: Instant,
    ) -> Result<()> {
        loop {
            let diff = self.diff(&Self::take(scope, places.clone())?);
            if diff.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("left behind:\n{}", diff.join("\n"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(lines: &[&str]) -> Snapshot {
        Snapshot {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn a_diff_names_what_came_and_what_went() {
        let diff = snapshot(&["a", "b"]).diff(&snapshot(&["b", "c"]));
        assert_eq!(diff, ["+ c", "- a"]);
    }

    #[test]
    fn equal_snapshots_have_no_diff() {
        assert!(snapshot(&["a"]).diff(&snapshot(&["a"])).is_empty());
    }
}
