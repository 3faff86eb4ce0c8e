use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::role::Role;
use crate::session_id::SessionId;

fn header(role: Role) -> Header {
    Header {
        schema: SCHEMA,
        software: "0.1.0".to_owned(),
        session: SessionId(7),
        role,
        pid: 1,
        qmp: PathBuf::from("/run/vm/qmp"),
        qemu: None,
        peer: "10.0.0.2".to_owned(),
        vm: Vec::new(),
        tap: Tap {
            name: "tap0".to_owned(),
            index: 3,
            netns: 4,
        },
        more_taps: Vec::new(),
        netns: 4,
        ends_qemu: true,
        receipts: Some(Receipts::random()),
        convergence_s: Some(30),
    }
}

#[track_caller]
fn only(directory: &Path) -> Found {
    let mut found = list(directory).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Adds to a journal what no katamaran of this version writes.
fn add(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_journal_lives_as_long_as_its_process_and_tells_the_same_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::create(directory.path(), header(Role::Source)).unwrap();
    journal.append(&Record::Stopping).unwrap();
    let found = only(directory.path());
    assert!(found.living);
    assert!(adopt(&found.path).unwrap().is_none());

    drop(journal);
    let found = only(directory.path());
    assert!(!found.living);
    let (_journal, story) = adopt(&found.path).unwrap().unwrap();
    assert_eq!(story.header.session, SessionId(7));
    assert!(story.has(&Record::Stopping));
    assert!(only(directory.path()).living);
}

#[test]
fn a_torn_last_line_was_never_written() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::create(directory.path(), header(Role::Source)).unwrap();
    journal.append(&Record::CommitSent).unwrap();
    drop(journal);
    let path = only(directory.path()).path;
    add(&path, "{\"at_us\":1,\"record\":\"runn");
    let story = only(directory.path()).story.unwrap();
    assert_eq!(story.standing(), Standing::CommitSent);

    let (journal, _) = adopt(&path).unwrap().unwrap();
    journal.append(&Record::CommitHadNoEffect).unwrap();
    let story = only(directory.path()).story.unwrap();
    assert_eq!(
        story.records,
        [Record::CommitSent, Record::CommitHadNoEffect]
    );
}

#[test]
fn what_a_later_version_wrote_is_refused_and_not_guessed() {
    let directory = tempfile::tempdir().unwrap();
    drop(Journal::create(directory.path(), header(Role::Source)).unwrap());
    let path = only(directory.path()).path;
    add(&path, "{\"at_us\":1,\"record\":\"teleported\"}\n");
    let error = only(directory.path()).story.unwrap_err();
    assert!(
        matches!(error, JournalError::Record { line: 2, .. }),
        "{error:?}"
    );

    let later = Header {
        schema: SCHEMA + 1,
        ..header(Role::Destination)
    };
    drop(Journal::create(directory.path(), later).unwrap());
    let found = list(directory.path()).unwrap();
    let schemas = found
        .iter()
        .filter(|f| matches!(f.story, Err(JournalError::Schema { found: 2, .. })));
    assert_eq!(schemas.count(), 1, "{found:?}");
}

#[test]
fn a_settled_journal_is_out_of_the_way_and_still_told() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::create(directory.path(), header(Role::Destination)).unwrap();
    journal.settle().unwrap();
    journal.append(&Record::Discarded).unwrap();
    assert!(list(directory.path()).unwrap().is_empty());
    let found = settled(directory.path()).unwrap();
    let story = found[0].story.as_ref().unwrap();
    assert_eq!(story.standing(), Standing::Discarded);
    journal.remove().unwrap();
    assert!(settled(directory.path()).unwrap().is_empty());
}

#[test]
fn a_half_made_journal_is_nobodys() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory
        .path()
        .join("0000000000000007-source.journal.draft");
    std::fs::write(file, "").unwrap();
    assert!(list(directory.path()).unwrap().is_empty());
}

#[test]
fn only_what_decides_changes_where_the_vm_is() {
    let story = |role, records: &[Record]| Story {
        header: header(role),
        since_us: 0,
        records: records.to_vec(),
    };
    use Record::{
        Blocked, CommitHadNoEffect, CommitReceived, CommitSent, Discarded, Migrating, Running,
        Stopping,
    };
    use Role::{Destination, Source};
    for (role, records, standing, undecided) in [
        (
            Source,
            &[Migrating, Stopping][..],
            Standing::BeforeCommit,
            false,
        ),
        (Source, &[Stopping, CommitSent], Standing::CommitSent, true),
        (
            Source,
            &[CommitSent, CommitHadNoEffect],
            Standing::BeforeCommit,
            false,
        ),
        (Source, &[CommitSent, Running], Standing::Running, false),
        (Destination, &[Blocked], Standing::BeforeCommit, false),
        (
            Destination,
            &[Blocked, CommitReceived],
            Standing::CommitReceived,
            true,
        ),
        (
            Destination,
            &[CommitReceived, Running],
            Standing::Running,
            false,
        ),
        (
            Destination,
            &[Blocked, Discarded],
            Standing::Discarded,
            false,
        ),
    ] {
        let story = story(role, records);
        assert_eq!(story.standing(), standing, "{records:?}");
        assert_eq!(story.is_undecided(), undecided, "{records:?}");
        let asked = role == Destination && records.contains(&Blocked);
        assert_eq!(story.source_may_ask(), asked, "{records:?}");
    }
}
