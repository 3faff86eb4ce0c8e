//! The undo stack: what was set up, and how each piece is undone.
//!
//! Each step pushes its undo before or with the step itself. There are three kinds: *cleanup* runs
//! on every way out, *abort* only when the migration did not commit. [`UndoStack::commit`] is the
//! one place where abort steps are discarded, and it returns a type that has none. The VM's *way* is cleaned
//! up on every way out but the one on which nobody knows where the VM is: [`Cleanup::keep_way`] leaves it in
//! place, for `katamaran resolve`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

type Step = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send>;

#[derive(PartialEq, Eq)]
enum When {
    Always,
    /// Always, but when it is not known where the VM is.
    Way,
    AbortOnly,
}

struct Entry {
    name: String,
    when: When,
    elsewhere: bool,
    step: Step,
}

/// What became of one undo step; part of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    pub what: String,
    /// Why it could not be undone; absent when it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It is the other node's, which looks after it by itself.
    #[serde(skip)]
    pub elsewhere: bool,
}

/// Everything to undo if the migration ends now, before COMMIT.
#[must_use = "an undo stack that is dropped undoes nothing"]
#[derive(Default)]
pub struct UndoStack {
    entries: Vec<Entry>,
}

/// Everything to clean up after COMMIT.
#[must_use = "a cleanup that is dropped cleans nothing"]
pub struct Cleanup {
    entries: Vec<Entry>,
}

impl fmt::Debug for UndoStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|e| &e.name))
            .finish()
    }
}

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|e| &e.name))
            .finish()
    }
}

impl UndoStack {
    /// Undone on every way out.
    pub fn cleanup<F, Fut>(&mut self, name: impl Into<String>, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.push(name.into(), When::Always, false, step);
    }

    /// What leads the VM's packets to it: undone on every way out on which it is known where the VM is.
    pub fn way<F, Fut>(&mut self, name: impl Into<String>, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.push(name.into(), When::Way, false, step);
    }

    /// Undone only if the migration does not commit.
    pub fn on_abort<F, Fut>(&mut self, name: impl Into<String>, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.push(name.into(), When::AbortOnly, false, step);
    }

    /// The same, on the other node.
    pub fn on_abort_elsewhere<F, Fut>(&mut self, name: impl Into<String>, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.push(name.into(), When::AbortOnly, true, step);
    }

    fn push<F, Fut>(&mut self, name: String, when: When, elsewhere: bool, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        let step: Step = Box::new(move || Box::pin(step()));
        self.entries.push(Entry {
            name,
            when,
            elsewhere,
            step,
        });
    }

    /// The point of no return: abort steps are gone.
    pub fn commit(self) -> Cleanup {
        Cleanup {
            entries: self
                .entries
                .into_iter()
                .filter(|e| e.when != When::AbortOnly)
                .collect(),
        }
    }

    /// Undoes everything, last first, within `budget`.
    pub async fn unwind(self, budget: Duration) -> Vec<Undone> {
        unwind(self.entries, budget).await
    }
}

impl Cleanup {
    /// Forgets how to undo what leads the VM's packets to it; it stays as a crash would leave it.
    pub fn keep_way(&mut self) {
        self.entries.retain(|entry| entry.when != When::Way);
    }

    /// Runs the cleanup steps, last first, within `budget`.
    pub async fn run(self, budget: Duration) -> Vec<Undone> {
        unwind(self.entries, budget).await
    }
}

/// A step that fails or runs out of time never keeps a later one from running: each gets its
/// share of what is left of the budget.
async fn unwind(mut entries: Vec<Entry>, budget: Duration) -> Vec<Undone> {
    let end = Instant::now() + budget;
    let mut undone = Vec::with_capacity(entries.len());
    while let Some(entry) = entries.pop() {
        let left = end.saturating_duration_since(Instant::now());
        let steps_left = u32::try_from(entries.len() + 1).unwrap_or(u32::MAX);
        let share = (left / steps_left).max(left / 2);
        let error = match tokio::time::timeout(share, (entry.step)()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("not finished within {} ms", share.as_millis())),
        };
        match &error {
            None => tracing::debug!(what = entry.name, "undone"),
            Some(error) => tracing::warn!(what = entry.name, error, "could not be undone"),
        }
        undone.push(Undone {
            what: entry.name,
            error,
            elsewhere: entry.elsewhere,
        });
    }
    undone
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn recorder() -> (Log, impl Fn(&mut UndoStack, &'static str, bool)) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = log.clone();
        let push = move |stack: &mut UndoStack, name: &'static str, abort_only: bool| {
            let log = shared.clone();
            let step = move || async move {
                log.lock().unwrap().push(name);
                Ok(())
            };
            if abort_only {
                stack.on_abort(name, step)
            } else {
                stack.cleanup(name, step)
            }
        };
        (log, push)
    }

    #[tokio::test]
    async fn everything_is_undone_in_reverse_order() {
        let (log, push) = recorder();
        let mut stack = UndoStack::default();
        push(&mut stack, "tunnel", false);
        push(&mut stack, "migrate", true);
        let undone = stack.unwind(Duration::from_secs(1)).await;
        assert_eq!(*log.lock().unwrap(), ["migrate", "tunnel"]);
        assert!(undone.iter().all(|u| u.error.is_none()));
    }

    #[tokio::test]
    async fn after_commit_nothing_can_resume_the_source() {
        let (log, push) = recorder();
        let mut stack = UndoStack::default();
        push(&mut stack, "tunnel", false);
        push(&mut stack, "resume", true);
        stack.commit().run(Duration::from_secs(1)).await;
        assert_eq!(*log.lock().unwrap(), ["tunnel"]);
    }

    #[tokio::test]
    async fn a_way_that_is_kept_is_all_that_stays() {
        let (log, push) = recorder();
        let mut stack = UndoStack::default();
        push(&mut stack, "relay", false);
        let way = log.clone();
        stack.way("programs", move || async move {
            way.lock().unwrap().push("programs");
            Ok(())
        });
        push(&mut stack, "resume", true);
        let mut cleanup = stack.commit();
        cleanup.keep_way();
        cleanup.run(Duration::from_secs(1)).await;
        assert_eq!(*log.lock().unwrap(), ["relay"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_or_fails_does_not_keep_the_others_from_running() {
        let (log, push) = recorder();
        let mut stack = UndoStack::default();
        push(&mut stack, "first", false);
        stack.cleanup("fails", || async { Err("no such device".to_owned()) });
        stack.cleanup("hangs", || async { std::future::pending().await });
        let started = Instant::now();
        let undone = stack.unwind(Duration::from_secs(10)).await;
        assert!(started.elapsed() <= Duration::from_secs(10));
        assert_eq!(*log.lock().unwrap(), ["first"]);
        let failed: Vec<_> = undone
            .iter()
            .filter(|u| u.error.is_some())
            .map(|u| u.what.as_str())
            .collect();
        assert_eq!(failed, ["hangs", "fails"]);
    }
}
