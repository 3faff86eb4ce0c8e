//! What a process leaves that ends without cleaning up, and what becomes of it: for whoever has no patience.

use std::path::Path;

use crate::journal::{self, DIRECTORY, Record, Standing, Story};
use crate::role::Role;

/// What this process leaves if it ends now.
#[must_use]
pub fn last_words() -> String {
    let journals = journal::list(Path::new(DIRECTORY)).unwrap_or_default();
    let stories = journals.into_iter().filter_map(|found| found.story.ok());
    let ours = stories.filter(|story| story.header.pid == std::process::id());
    let told: Vec<String> = ours.map(|story| tell(&story)).collect();
    match told.is_empty() {
        true => "nothing was set up yet".to_owned(),
        false => told.join("; "),
    }
}

fn tell(story: &Story) -> String {
    let session = story.header.session;
    let left = left(story);
    let left = match left.is_empty() {
        true => "nothing but the journal".to_owned(),
        false => left.join(", "),
    };
    let next = match (story.is_undecided(), story.standing()) {
        (true, _) => format!("run `katamaran resolve {session}`, on the destination first"),
        (false, Standing::Running) => {
            format!("`katamaran cleanup --apply --session {session}` removes it")
        }
        (false, _) if story.header.role == Role::Source => format!(
            "`katamaran cleanup --apply --session {session}` removes it and lets the VM run here again"
        ),
        (false, _) => format!(
            "`katamaran cleanup --apply --session {session}` removes it and ends QEMU, whose copy of the VM must not run here"
        ),
    };
    let phase = story.phase().unwrap_or("prepare");
    format!(
        "session {session} ({}, {phase}) leaves {left}: {next}",
        story.header.role
    )
}

/// What is in place, as far as the journal tells.
fn left(story: &Story) -> Vec<&'static str> {
    let armed = story.phase().is_some_and(|phase| phase != "prepare");
    let settings = |record: &Record| matches!(record, Record::QemuSettings { .. });
    let ring = |record: &Record| matches!(record, Record::Ring { .. });
    let any = |is: fn(&Record) -> bool| story.records.iter().any(is);
    let stopped = story.has_stopped_vm();
    [
        (armed, "eBPF programs, and maybe a redirect or a tunnel"),
        (any(ring), "a longer ring of the tap, and maybe a plug"),
        (any(settings), "QEMU set up for a migration"),
        (story.has(&Record::Listening), "QEMU with the VM coming in"),
        (stopped, "the VM stopped"),
    ]
    .into_iter()
    .filter_map(|(is, what)| is.then_some(what))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::aftermath::testing::story;

    #[test]
    fn a_source_that_has_stopped_the_vm_says_so_and_how_it_runs_again() {
        let phase = |name: &str| Record::Phase {
            name: name.to_owned(),
        };
        let early = tell(&story(Role::Source, &[phase("prepare")]));
        assert!(early.contains("nothing but the journal"), "{early}");
        let records = [phase("arm"), phase("cutover"), Record::Stopping];
        let late = tell(&story(Role::Source, &records));
        for words in ["cutover", "the VM stopped", "cleanup --apply --session"] {
            assert!(late.contains(words), "{late}");
        }
    }

    #[test]
    fn one_that_does_not_know_where_the_vm_is_names_resolve_and_nothing_else() {
        let source = tell(&story(Role::Source, &[Record::CommitSent]));
        let destination = tell(&story(Role::Destination, &[Record::CommitReceived]));
        for told in [source, destination] {
            assert!(told.contains("katamaran resolve"), "{told}");
            assert!(!told.contains("cleanup"), "{told}");
        }
    }
}
