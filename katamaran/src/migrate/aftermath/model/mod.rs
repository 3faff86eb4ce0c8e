//! The commit protocol, exhausted: both nodes, the session and every fault, in every order, up to a number of faults.
//!
//! What the product decides is decided here by the product's own functions: the destination's stages
//! ([`next`](crate::migrate::destination::stage::next)), what an answer to COMMIT means
//! ([`fate`](crate::migrate::source::commit::fate)), what a journal tells ([`Story::standing`](crate::journal::Story::standing)), what a clean-up does
//! ([`decide`](super::decide::decide)) and what an operator's answer comes to ([`settle`](super::settle)). The model
//! adds the order of steps, messages that are late or lost, and processes that die.
//!
//! A session is one TCP connection: messages come in order or not at all, and one node may see its end before the other.

mod destination;
mod operator;
mod source;
mod world;

use stateright::{Checker, Model, Property};

use self::world::{Step, Vm, World};
use super::settle::Answer;
use crate::role::Role;

/// A mistake on purpose: the check must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bug {
    SourceResumesWhenInDoubt,
    CommitIsNotWrittenDown,
    ReceiptsCanBeGuessed,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
enum Action {
    Source,
    SourceReceives,
    /// A deadline, or the end of the session is seen.
    SourceGivesUp,
    DestinationReceives,
    DestinationRuns,
    DestinationEnds,
    /// QEMU sends the rest of the VM, and the other one loads it.
    Load,
    Cleanup(Role),
    ResolveSource(Answer),
    ResolveDestination(Answer),
    // Faults.
    Signal,
    SourceSeesEnd,
    DestinationSeesEnd,
    RunFails,
    KatamaranDies(Role),
    QemuDies(Role),
    QemuStopsVm,
}

impl Action {
    fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Signal
                | Self::SourceSeesEnd
                | Self::DestinationSeesEnd
                | Self::RunFails
                | Self::KatamaranDies(_)
                | Self::QemuDies(_)
                | Self::QemuStopsVm
        )
    }
}

#[derive(Debug, Clone)]
struct Protocol {
    faults: u8,
    bug: Option<Bug>,
}

impl Protocol {
    /// What goes on without a fault.
    fn progress(&self, world: &World) -> Vec<Action> {
        let mut actions = vec![
            Action::Source,
            Action::SourceReceives,
            Action::DestinationReceives,
            Action::DestinationRuns,
            Action::Load,
            Action::Cleanup(Role::Source),
            Action::Cleanup(Role::Destination),
        ];
        // A node sees sooner or later that the other one has left.
        if world.source.session && !world.dest.session {
            actions.push(Action::SourceSeesEnd);
        }
        if !world.source.session && world.dest.session && world.to_dest.is_empty() {
            actions.push(Action::DestinationSeesEnd);
        }
        let waits_in_vain = !world.source.session;
        let late = world.source.step == Some(Step::AwaitFate);
        if waits_in_vain || late {
            actions.push(Action::SourceGivesUp);
        }
        if !world.dest.session {
            actions.push(Action::DestinationEnds);
        }
        actions.extend(
            operator::answers(world, self.bug)
                .into_iter()
                .map(Action::ResolveSource),
        );
        for answer in [Answer::Nothing, Answer::Discard, Answer::Run] {
            actions.push(Action::ResolveDestination(answer));
        }
        actions.retain(|action| self.play(world, action).is_some());
        actions
    }

    fn play(&self, last: &World, action: &Action) -> Option<World> {
        let mut world = last.clone();
        let bug = self.bug;
        let happened = match action {
            Action::Source => source::advance(&mut world, bug),
            Action::SourceReceives => source::receive(&mut world, bug),
            Action::SourceGivesUp | Action::Signal => source::give_up(&mut world, bug),
            Action::DestinationReceives => destination::receive(&mut world),
            Action::DestinationRuns => destination::run(&mut world, true),
            Action::RunFails => destination::run(&mut world, false),
            Action::DestinationEnds => destination::end(&mut world),
            Action::Load => load(&mut world),
            Action::Cleanup(role) => {
                operator::clean(&mut world, *role);
                true
            }
            Action::ResolveSource(answer) => {
                operator::resolve_on_source(&mut world, answer);
                true
            }
            Action::ResolveDestination(answer) => {
                operator::resolve_on_destination(&mut world, answer);
                true
            }
            Action::SourceSeesEnd => {
                world.source_loses_session();
                true
            }
            Action::DestinationSeesEnd => {
                world.dest_loses_session();
                true
            }
            Action::KatamaranDies(role) => dies(&mut world, *role),
            Action::QemuDies(role) => qemu_dies(&mut world, *role),
            Action::QemuStopsVm => {
                let stops = world.source.vm == Vm::Running
                    && matches!(world.source.step, Some(Step::AwaitBlock | Step::Stop));
                world.source.vm = if stops {
                    Vm::Finishing
                } else {
                    world.source.vm
                };
                stops
            }
        };
        if action.is_fault() {
            world.faults = world.faults.saturating_sub(1);
        }
        (happened && world != *last).then_some(world)
    }

    fn at_rest(&self, world: &World) -> bool {
        self.progress(world).is_empty()
    }
}

/// Both katamarans carry the stream.
fn load(world: &mut World) -> bool {
    let sends = matches!(world.source.vm, Vm::Stopped | Vm::Finishing);
    let carried = world.source.step.is_some_and(Step::may_abort)
        && world.source.session
        && world.dest.session;
    let (true, true, Vm::Incoming, Some(serving)) =
        (sends, carried, world.dest.vm, world.dest.step.as_mut())
    else {
        return false;
    };
    serving.loaded = true;
    world.source.vm = Vm::Sent;
    world.dest.vm = Vm::Loaded;
    world.tell(world::Tell::Loaded);
    true
}

fn dies(world: &mut World, role: Role) -> bool {
    match role {
        Role::Source => {
            world.source_loses_session();
            world.source.step.take().is_some()
        }
        Role::Destination => {
            world.dest_loses_session();
            world.dest.step.take().is_some()
        }
    }
}

fn qemu_dies(world: &mut World, role: Role) -> bool {
    world.qemu_died = true;
    let vm = match role {
        Role::Source => &mut world.source.vm,
        Role::Destination => &mut world.dest.vm,
    };
    std::mem::replace(vm, Vm::Gone) != Vm::Gone
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(self.progress(world));
        if world.faults == 0 {
            return;
        }
        actions.extend([
            Action::Signal,
            Action::RunFails,
            Action::KatamaranDies(Role::Source),
            Action::KatamaranDies(Role::Destination),
            Action::QemuDies(Role::Source),
            Action::QemuDies(Role::Destination),
            Action::QemuStopsVm,
        ]);
        if world.source.session {
            actions.push(Action::SourceSeesEnd);
        }
        if world.dest.session {
            actions.push(Action::DestinationSeesEnd);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.play(world, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWO, |_, world: &World| world.running() <= 1),
            Property::always("no VM that runs is ended", |_, world: &World| {
                !world.ended_running
            }),
            Property::always(
                "at rest exactly one runs, unless a QEMU died",
                |model: &Self, world: &World| {
                    world.qemu_died || world.running() == 1 || !model.at_rest(world)
                },
            ),
            Property::always(
                "without COMMIT the VM ends up on the source",
                |model: &Self, world: &World| {
                    world.commit_noted
                        || world.source.vm == Vm::Running
                        || world.qemu_died
                        || !model.at_rest(world)
                },
            ),
            Property::sometimes("it moves", |_, world: &World| {
                (world.source.vm, world.dest.vm) == (Vm::Gone, Vm::Running)
            }),
            Property::sometimes("it is given back by a receipt", |_, world: &World| {
                world.told_discarded && world.commit_noted && world.source.vm == Vm::Running
            }),
            Property::sometimes("it is given up by a receipt", |_, world: &World| {
                world.told_runs && world.source.vm == Vm::Gone && !world.qemu_died
            }),
        ]
    }
}

const NEVER_TWO: &str = "never two run";
/// In one migration, at most.
const FAULTS: u8 = 6;

#[test]
fn in_no_order_of_steps_and_faults_do_two_copies_run_or_none() {
    let model = Protocol {
        faults: FAULTS,
        bug: None,
    };
    let checker = model.checker().spawn_bfs().join();
    println!(
        "commit protocol, up to {FAULTS} faults: {} states ({} different), depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn a_mistake_on_purpose_is_found() {
    for bug in [
        Bug::SourceResumesWhenInDoubt,
        Bug::CommitIsNotWrittenDown,
        Bug::ReceiptsCanBeGuessed,
    ] {
        let model = Protocol {
            faults: 2,
            bug: Some(bug),
        };
        let checker = model.checker().spawn_bfs().join();
        let path = checker.discovery(NEVER_TWO);
        let actions = path.map(stateright::Path::into_actions).unwrap_or_default();
        assert!(!actions.is_empty(), "{bug:?} is not found");
        println!("{bug:?}: two run after {} steps", actions.len());
    }
}
