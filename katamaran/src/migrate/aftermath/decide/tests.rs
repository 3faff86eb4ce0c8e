use super::super::testing::story;
use super::*;
use crate::journal::Header;
use crate::role::Role;

/// Everything that can be left, behind a VM in this state.
fn all_of_it(status: RunState) -> Facts {
    Facts {
        qemu: Some(QemuFacts {
            running: status == RunState::Running,
            status,
            migration: Some(MigrationStatus::Active),
            mirrors: true,
            exports: true,
        }),
        programs: true,
        retained: true,
        devices: vec!["ktms1".to_owned()],
        plug: true,
        rings: vec![Some(131_072)],
        directories: vec![PathBuf::from("/run/katamaran/1-source")],
    }
}

const STATES: [RunState; 6] = [
    RunState::Running,
    RunState::Paused,
    RunState::Postmigrate,
    RunState::FinishMigrate,
    RunState::Inmigrate,
    RunState::Shutdown,
];

/// Every journal of up to five records that matter, in any order.
fn stories(role: Role) -> Vec<Story> {
    const RECORDS: [Record; 9] = [
        Record::Migrating,
        Record::Stopping,
        Record::Resumed,
        Record::Listening,
        Record::CommitSent,
        Record::CommitHadNoEffect,
        Record::CommitReceived,
        Record::Running,
        Record::Discarded,
    ];
    let mut all = vec![Vec::new()];
    let mut longest = all.clone();
    for _ in 0..4 {
        longest = longest
            .iter()
            .flat_map(|so_far| {
                RECORDS.iter().map(move |next| {
                    let mut records: Vec<Record> = so_far.clone();
                    records.push(next.clone());
                    records
                })
            })
            .collect();
        all.extend(longest.clone());
    }
    all.iter().map(|records| story(role, records)).collect()
}

#[test]
fn a_source_never_resumes_a_vm_that_the_destination_may_run() {
    let mut resumed = 0;
    for story in stories(Role::Source) {
        for status in STATES {
            let Ok(deeds) = decide(&story, &all_of_it(status)) else {
                continue;
            };
            if !deeds.contains(&Deed::ResumeVm) {
                continue;
            }
            resumed += 1;
            let decided = story.records.iter().rev().find(|record| {
                matches!(
                    record,
                    Record::CommitSent
                        | Record::CommitHadNoEffect
                        | Record::CommitReceived
                        | Record::Running
                        | Record::Discarded
                )
            });
            assert!(
                matches!(
                    decided,
                    None | Some(Record::CommitHadNoEffect | Record::Discarded)
                ),
                "{:?}",
                story.records
            );
        }
    }
    assert!(resumed > 100, "{resumed}");
}

#[test]
fn no_vm_that_runs_is_ended_and_none_is_resumed_on_a_destination() {
    for role in [Role::Source, Role::Destination] {
        for story in stories(role) {
            let running = decide(&story, &all_of_it(RunState::Running)).unwrap_or_default();
            assert!(
                !running.contains(&Deed::EndQemu),
                "{role} {:?}",
                story.records
            );
            for status in STATES {
                let deeds = decide(&story, &all_of_it(status)).unwrap_or_default();
                let resumes = deeds.contains(&Deed::ResumeVm);
                assert!(role == Role::Source || !resumes, "{:?}", story.records);
            }
        }
    }
}

#[test]
fn what_others_have_paused_stays_paused() {
    let copied = story(Role::Source, &[Record::Migrating]);
    let paused = decide(&copied, &all_of_it(RunState::Paused)).unwrap();
    assert!(!paused.contains(&Deed::ResumeVm));
    // Before the migration, while mirrors were being removed; perhaps not for the first time.
    let records = [Record::Stopping, Record::Resumed, Record::Stopping];
    for records in [&records[..1], &records[..]] {
        let decided = decide(&story(Role::Source, records), &all_of_it(RunState::Paused)).unwrap();
        assert!(decided.contains(&Deed::ResumeVm), "{records:?}");
    }
    let stopped = story(Role::Source, &[Record::Migrating, Record::Stopping]);
    let paused = decide(&stopped, &all_of_it(RunState::Paused)).unwrap();
    assert!(paused.contains(&Deed::ResumeVm));
    let resumed = [Record::Migrating, Record::Stopping, Record::Resumed];
    let paused = decide(&story(Role::Source, &resumed), &all_of_it(RunState::Paused)).unwrap();
    assert!(!paused.contains(&Deed::ResumeVm));
}

#[test]
fn the_redirect_goes_before_the_vm_runs() {
    let stopped = story(Role::Source, &[Record::Migrating, Record::Stopping]);
    let deeds = decide(&stopped, &all_of_it(RunState::Paused)).unwrap();
    let at = |deed| deeds.iter().position(|d| *d == deed).unwrap();
    assert!(at(Deed::RemoveMirrors) < at(Deed::CancelMigration));
    assert!(at(Deed::CancelMigration) < at(Deed::RemovePrograms));
    assert!(at(Deed::RemovePrograms) < at(Deed::ResumeVm));
}

#[test]
fn an_incoming_qemu_is_ended_only_if_it_was_told_to_receive() {
    let facts = all_of_it(RunState::Inmigrate);
    let ring = Record::Ring {
        before: 1000,
        nic: 0,
    };
    let armed = decide(
        &story(Role::Destination, std::slice::from_ref(&ring)),
        &facts,
    )
    .unwrap();
    assert!(!armed.contains(&Deed::EndQemu));
    assert!(armed.contains(&Deed::RemoveExports));
    assert!(armed.contains(&Deed::ShortenRing { nic: 0, to: 1000 }));
    let listening = [ring, Record::Listening];
    let listening = decide(&story(Role::Destination, &listening), &facts).unwrap();
    assert_eq!(listening[0], Deed::EndQemu);
}

#[test]
fn a_vm_that_was_given_to_the_destination_keeps_plug_and_ring() {
    let records = [
        Record::Ring {
            before: 1000,
            nic: 0,
        },
        Record::Listening,
        Record::CommitReceived,
    ];
    let story = story(Role::Destination, &records);
    let deeds = decide(&story, &all_of_it(RunState::Running)).unwrap();
    assert_eq!(deeds[0], Deed::OpenPlug);
    let lost = |deed: &Deed| matches!(deed, Deed::RemovePlug | Deed::ShortenRing { .. });
    assert!(!deeds.iter().any(lost), "{deeds:?}");
    let stopped = decide(&story, &all_of_it(RunState::Paused)).unwrap_err();
    assert!(stopped.contains("resolve 0000000000000001"), "{stopped}");
}

#[test]
fn a_source_without_its_qemu_has_nothing_that_could_run() {
    let sent = story(Role::Source, &[Record::Migrating, Record::CommitSent]);
    let gone = Facts {
        qemu: None,
        ..all_of_it(RunState::Running)
    };
    let deeds = decide(&sent, &gone).unwrap();
    assert_eq!(
        deeds[..2],
        [
            Deed::AwaitQuiet {
                limit: deadline::CONVERGENCE
            },
            Deed::RemovePrograms
        ]
    );
    let patient = Story {
        header: Header {
            convergence_s: Some(77),
            ..sent.header.clone()
        },
        ..sent.clone()
    };
    let limit = Duration::from_secs(77);
    let deeds = decide(&patient, &gone).unwrap();
    assert_eq!(deeds[0], Deed::AwaitQuiet { limit });
    let there = decide(&sent, &all_of_it(RunState::Postmigrate)).unwrap_err();
    assert!(there.contains("katamaran resolve"), "{there}");
}

#[test]
fn packets_are_put_back_only_where_the_vm_goes_on_and_before_the_redirect_ends() {
    for story in stories(Role::Source) {
        let Ok(deeds) = decide(&story, &all_of_it(RunState::Paused)) else {
            continue;
        };
        let at = |wanted: &Deed| deeds.iter().position(|deed| deed == wanted);
        let returned = at(&Deed::ReturnPackets);
        let given_away = story.standing() == Standing::Running;
        assert_eq!(returned.is_none(), given_away, "{story:?}");
        assert!(returned < at(&Deed::RemovePrograms), "{story:?}");
        if let Some(resumed) = at(&Deed::ResumeVm) {
            assert!(returned < Some(resumed), "{story:?}");
        }
    }
}

#[test]
fn a_way_that_packets_take_to_the_vm_goes_only_when_the_network_has_another() {
    for role in [Role::Source, Role::Destination] {
        for story in stories(role) {
            for status in STATES {
                let Ok(deeds) = decide(&story, &all_of_it(status.clone())) else {
                    continue;
                };
                let at = |wanted: &Deed| deeds.iter().position(|deed| deed == wanted);
                let there = match role {
                    Role::Source => story.standing() == Standing::Running,
                    Role::Destination => {
                        deeds.contains(&Deed::OpenPlug) && status == RunState::Running
                    }
                };
                let limit = deadline::CONVERGENCE;
                let awaited = at(&Deed::AwaitQuiet { limit });
                assert_eq!(awaited.is_some(), there, "{story:?} {deeds:?}");
                let removed = at(&Deed::RemovePrograms).unwrap();
                assert!(awaited.is_none_or(|at| at + 1 == removed), "{deeds:?}");
            }
        }
    }
}
