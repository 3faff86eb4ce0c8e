//! How far the destination is, and which request may come next: a pure table.

use std::fmt;

use crate::control::{Fault, FaultCode};
use crate::migrate::message::Request;

/// How far the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Connected,
    Greeted,
    Prepared,
    Armed,
    Listening,
    /// Arriving packets are held.
    Blocked,
    /// COMMIT came: the VM runs here, or is being started.
    Committed,
    /// Everything is undone.
    Finished,
    /// The migration was given up; held packets are being given back.
    Aborted,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "connected",
            Self::Greeted => "greeted",
            Self::Prepared => "prepared",
            Self::Armed => "armed",
            Self::Listening => "listening",
            Self::Blocked => "blocked",
            Self::Committed => "committed",
            Self::Finished => "finished",
            Self::Aborted => "aborted",
        })
    }
}

/// The stage that `request` leads to from `stage`.
///
/// # Errors
/// A request that must not come now; the fault names it and the stage.
pub(crate) fn next(stage: Stage, request: &Request, loaded: bool) -> Result<Stage, Fault> {
    let wrong = || {
        Err(Fault::new(
            FaultCode::WrongState,
            format!("{} is not for a destination that is {stage}", name(request)),
        ))
    };
    match (request, stage) {
        (Request::Hello { .. }, Stage::Connected) => Ok(Stage::Greeted),
        (Request::Prepare(_), Stage::Greeted) => Ok(Stage::Prepared),
        (Request::Attach(_), Stage::Prepared) => Ok(Stage::Prepared),
        (Request::Arm(_), Stage::Prepared) => Ok(Stage::Armed),
        (Request::Incoming { .. }, Stage::Armed) => Ok(Stage::Listening),
        (Request::Block, Stage::Listening) => Ok(Stage::Blocked),
        (Request::Inject { .. }, Stage::Blocked) => Ok(Stage::Blocked),
        (Request::Commit, Stage::Blocked) if loaded => Ok(Stage::Committed),
        (Request::Commit, Stage::Blocked) => Err(Fault::new(
            FaultCode::WrongState,
            "COMMIT before the VM has arrived: refused",
        )),
        (Request::Reconcile { .. }, Stage::Committed) => Ok(Stage::Committed),
        (Request::Finish { .. }, Stage::Committed) => Ok(Stage::Finished),
        // An abort that lost a race with COMMIT must not stop a VM that runs here.
        (Request::Abort { .. }, Stage::Committed | Stage::Finished) => wrong(),
        (Request::Abort { .. }, _) => Ok(Stage::Aborted),
        _ => wrong(),
    }
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "Hello",
        Request::Prepare(_) => "Prepare",
        Request::Attach(_) => "Attach",
        Request::Arm(_) => "Arm",
        Request::Incoming { .. } => "Incoming",
        Request::Block => "Block",
        Request::Inject { .. } => "Inject",
        Request::Commit => "Commit",
        Request::Reconcile { .. } => "Reconcile",
        Request::Finish { .. } => "Finish",
        Request::Abort { .. } => "Abort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::ledger::Verdict;
    use crate::migrate::message::Summary;

    fn abort() -> Request {
        Request::Abort {
            reason: String::new(),
        }
    }

    #[test]
    fn a_good_migration_goes_through_every_stage_in_order() {
        let incoming = Request::Incoming {
            multifd_channels: 0,
        };
        assert_eq!(
            next(Stage::Armed, &incoming, false).unwrap(),
            Stage::Listening
        );
        assert_eq!(
            next(Stage::Listening, &Request::Block, false).unwrap(),
            Stage::Blocked
        );
        assert_eq!(
            next(Stage::Blocked, &Request::Commit, true).unwrap(),
            Stage::Committed
        );
        let summary = Summary {
            verdict: Verdict::Proven,
            ledger: None,
            unproven: vec![],
        };
        let finish = Request::Finish { summary };
        assert_eq!(
            next(Stage::Committed, &finish, true).unwrap(),
            Stage::Finished
        );
    }

    #[test]
    fn volumes_are_compared_before_anything_is_armed() {
        let attach = Request::Attach(crate::migrate::shared::wire::SharedOffer {
            place: crate::migrate::shared::wire::Place {
                boot_id: String::new(),
                pid_namespace: 0,
                processes: vec![],
            },
            volumes: vec![],
        });
        assert_eq!(
            next(Stage::Prepared, &attach, false).unwrap(),
            Stage::Prepared
        );
        for stage in [Stage::Greeted, Stage::Armed, Stage::Blocked] {
            assert!(next(stage, &attach, true).is_err());
        }
    }

    #[test]
    fn the_vm_is_never_run_before_it_has_arrived_nor_twice() {
        assert!(next(Stage::Blocked, &Request::Commit, false).is_err());
        assert!(next(Stage::Listening, &Request::Commit, true).is_err());
        assert!(next(Stage::Committed, &Request::Commit, true).is_err());
        assert!(next(Stage::Aborted, &Request::Commit, true).is_err());
    }

    #[test]
    fn an_abort_is_taken_at_any_stage_before_commit_and_at_none_after() {
        for stage in [
            Stage::Connected,
            Stage::Greeted,
            Stage::Prepared,
            Stage::Armed,
            Stage::Listening,
            Stage::Blocked,
            Stage::Aborted,
        ] {
            assert_eq!(next(stage, &abort(), true).unwrap(), Stage::Aborted);
        }
        for stage in [Stage::Committed, Stage::Finished] {
            assert!(next(stage, &abort(), true).is_err());
        }
    }

    #[test]
    fn a_wrong_request_is_named_with_the_stage() {
        let fault = next(Stage::Connected, &Request::Block, false).unwrap_err();
        assert!(fault.message.contains("Block") && fault.message.contains("connected"));
    }
}
