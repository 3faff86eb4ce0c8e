//! `katamaran cleanup --apply` and `katamaran resolve`, once katamaran has ended on a node.

use super::super::decide::{Deed, decide};
use super::super::last_record;
use super::super::settle::{self, Answer, DestinationStep, SourceStep};
use super::Bug;
use super::world::{Note, Vm, World};
use crate::journal::{Standing, Story};
use crate::role::Role;

/// What the operator can say on the source.
pub(super) fn answers(world: &World, bug: Option<Bug>) -> Vec<Answer> {
    let mut answers = vec![
        Answer::DestinationDiscarded("guessed".to_owned()),
        Answer::DestinationRuns("guessed".to_owned()),
    ];
    if world.told_discarded || bug == Some(Bug::ReceiptsCanBeGuessed) {
        answers.push(Answer::DestinationDiscarded("d".to_owned()));
    }
    if world.told_runs {
        answers.push(Answer::DestinationRuns("r".to_owned()));
    }
    answers
}

pub(super) fn clean(world: &mut World, role: Role) {
    let Some(story) = story(world, role) else {
        return;
    };
    let facts = match role {
        Role::Source => world.source.facts(),
        Role::Destination => world.dest.facts(),
    };
    let Ok(deeds) = decide(&story, &facts) else {
        return;
    };
    for deed in &deeds {
        carry_out(world, role, deed);
    }
    match role {
        Role::Source => world.source.journal = None,
        Role::Destination if !story.source_may_ask() => world.dest.journal = None,
        Role::Destination => {
            let record = last_record(story.standing(), facts.runs_here());
            if let Some(record) = record {
                world.dest.note(Note::of(&record));
            }
        }
    }
}

pub(super) fn resolve_on_source(world: &mut World, answer: &Answer) {
    let Some(story) = story(world, Role::Source) else {
        return;
    };
    if let Ok(SourceStep::Believe(record, _)) = settle::of_source(&story, answer) {
        world.source.note(Note::of(&record));
        clean(world, Role::Source);
    }
}

pub(super) fn resolve_on_destination(world: &mut World, answer: &Answer) {
    let Some(story) = story(world, Role::Destination) else {
        return;
    };
    let Ok(decided) = settle::is_decided(&story, answer) else {
        return;
    };
    if !decided {
        let facts = world.dest.facts();
        match settle::of_destination(&story, &facts, answer) {
            Ok(DestinationStep::Note(record)) => world.dest.note(Note::of(&record)),
            Ok(DestinationStep::Do(deed, record)) => {
                carry_out(world, Role::Destination, &deed);
                world.dest.note(Note::of(&record));
            }
            Ok(DestinationStep::Choose { .. }) | Err(_) => return,
        }
    }
    let standing = self::story(world, Role::Destination).map(|story| story.standing());
    clean(world, Role::Destination);
    match standing {
        Some(Standing::Running) => world.told_runs = true,
        Some(Standing::Discarded) => world.told_discarded = true,
        _ => {}
    }
}

fn story(world: &World, role: Role) -> Option<Story> {
    match role {
        Role::Source if world.source.step.is_none() => world.source.story(role),
        Role::Destination if world.dest.step.is_none() => world.dest.story(role),
        _ => None,
    }
}

fn carry_out(world: &mut World, role: Role, deed: &Deed) {
    let vm = match role {
        Role::Source => &mut world.source.vm,
        Role::Destination => &mut world.dest.vm,
    };
    match deed {
        Deed::ResumeVm => *vm = Vm::Running,
        Deed::EndQemu => {
            world.ended_running |= *vm == Vm::Running;
            *vm = Vm::Gone;
        }
        _ => {}
    }
}
