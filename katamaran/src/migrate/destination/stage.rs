//! How far the destination is, and which request may come next: a pure table.

use std::fmt;

use crate::control::{Fault, FaultCode};
use crate::migrate::message::Request;

/// How far the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// What else decides about a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// QEMU has loaded the whole VM.
    pub(crate) loaded: bool,
    /// The source mirrors drives.
    pub(crate) mirrored: bool,
    /// The drives are exported: somebody may write to them.
    pub(crate) exported: bool,
    /// The QEMU that had it is gone.
    pub(crate) gone: bool,
}

/// The stage that `request` leads to from `stage`.
///
/// # Errors
/// A request that must not come now; the fault names it and the stage.
pub(crate) fn next(stage: Stage, request: &Request, facts: Facts) -> Result<Stage, Fault> {
    let wrong = || {
        Err(Fault::new(
            FaultCode::WrongState,
            format!("{} is not for a destination that is {stage}", name(request)),
        ))
    };
    let refused = |why: &str| Err(Fault::new(FaultCode::WrongState, why));
    match (request, stage) {
        (Request::Hello { .. }, Stage::Connected) => Ok(Stage::Greeted),
        (Request::Prepare(_), Stage::Greeted) => Ok(Stage::Prepared),
        (Request::Attach(_), Stage::Prepared) => Ok(Stage::Prepared),
        (Request::Arm(_), Stage::Prepared) => Ok(Stage::Armed),
        (Request::Export, Stage::Armed) if facts.mirrored && !facts.exported => Ok(Stage::Armed),
        (Request::Incoming { .. }, Stage::Armed) if facts.mirrored && !facts.exported => {
            refused("RAM before the drives are exported: refused")
        }
        (Request::Incoming { .. }, Stage::Armed) => Ok(Stage::Listening),
        (Request::Conntrack(_), Stage::Listening | Stage::Blocked | Stage::Committed) => Ok(stage),
        (Request::Block, Stage::Listening) => Ok(Stage::Blocked),
        (Request::Inject { .. }, Stage::Blocked) => Ok(Stage::Blocked),
        (Request::Checksums { .. }, Stage::Blocked) if facts.exported => Ok(Stage::Blocked),
        (Request::CloseExport, Stage::Blocked) if facts.exported => Ok(Stage::Blocked),
        (Request::Commit, Stage::Blocked) if facts.exported => {
            refused("COMMIT while the drives are exported: refused")
        }
        (Request::Commit, Stage::Blocked) if facts.gone => {
            refused("COMMIT for a VM whose QEMU on the destination is gone: refused")
        }
        (Request::Commit, Stage::Blocked) if facts.loaded => Ok(Stage::Committed),
        (Request::Commit, Stage::Blocked) => refused("COMMIT before the VM has arrived: refused"),
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
        Request::Export => "Export",
        Request::Checksums { .. } => "Checksums",
        Request::CloseExport => "CloseExport",
        Request::Incoming { .. } => "Incoming",
        Request::Conntrack(_) => "Conntrack",
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
            nic: 0,
        }
    }

    const NOTHING: Facts = Facts {
        loaded: false,
        mirrored: false,
        exported: false,
        gone: false,
    };
    const LOADED: Facts = Facts {
        loaded: true,
        ..NOTHING
    };

    #[test]
    fn a_good_migration_goes_through_every_stage_in_order() {
        let incoming = Request::Incoming {
            multifd_channels: 0,
        };
        assert_eq!(
            next(Stage::Armed, &incoming, NOTHING).unwrap(),
            Stage::Listening
        );
        assert_eq!(
            next(Stage::Listening, &Request::Block, NOTHING).unwrap(),
            Stage::Blocked
        );
        assert_eq!(
            next(Stage::Blocked, &Request::Commit, LOADED).unwrap(),
            Stage::Committed
        );
        let summary = Summary {
            verdict: Verdict::Proven,
            ledger: None,
            unproven: vec![],
        };
        let finish = Request::Finish { summary };
        assert_eq!(
            next(Stage::Committed, &finish, LOADED).unwrap(),
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
            next(Stage::Prepared, &attach, NOTHING).unwrap(),
            Stage::Prepared
        );
        for stage in [Stage::Greeted, Stage::Armed, Stage::Blocked] {
            assert!(next(stage, &attach, LOADED).is_err());
        }
    }

    #[test]
    fn connections_are_taken_in_while_the_vm_is_on_its_way_and_after() {
        let connections = Request::Conntrack(Default::default());
        for stage in [Stage::Listening, Stage::Blocked, Stage::Committed] {
            assert_eq!(next(stage, &connections, NOTHING).unwrap(), stage);
        }
        for stage in [
            Stage::Prepared,
            Stage::Armed,
            Stage::Finished,
            Stage::Aborted,
        ] {
            assert!(next(stage, &connections, LOADED).is_err());
        }
    }

    #[test]
    fn the_vm_is_never_run_before_it_has_arrived_nor_twice() {
        assert!(next(Stage::Blocked, &Request::Commit, NOTHING).is_err());
        assert!(next(Stage::Listening, &Request::Commit, LOADED).is_err());
        assert!(next(Stage::Committed, &Request::Commit, LOADED).is_err());
        assert!(next(Stage::Aborted, &Request::Commit, LOADED).is_err());
        let gone = Facts {
            gone: true,
            ..LOADED
        };
        assert!(next(Stage::Blocked, &Request::Commit, gone).is_err());
    }

    #[test]
    fn drives_are_exported_before_ram_and_closed_before_commit() {
        let facts = |exported| Facts {
            loaded: true,
            mirrored: true,
            exported,
            gone: false,
        };
        let (closed, open) = (facts(false), facts(true));
        let incoming = Request::Incoming {
            multifd_channels: 0,
        };
        assert!(next(Stage::Armed, &incoming, closed).is_err());
        assert_eq!(
            next(Stage::Armed, &Request::Export, closed).unwrap(),
            Stage::Armed
        );
        assert!(
            next(Stage::Armed, &Request::Export, open).is_err(),
            "only once"
        );
        assert_eq!(
            next(Stage::Armed, &incoming, open).unwrap(),
            Stage::Listening
        );
        assert!(next(Stage::Listening, &Request::CloseExport, open).is_err());
        let fault = next(Stage::Blocked, &Request::Commit, open).unwrap_err();
        assert!(fault.message.contains("exported"), "{fault}");
        assert_eq!(
            next(Stage::Blocked, &Request::CloseExport, open).unwrap(),
            Stage::Blocked
        );
        assert_eq!(
            next(Stage::Blocked, &Request::Commit, closed).unwrap(),
            Stage::Committed
        );
        assert!(next(Stage::Blocked, &Request::CloseExport, closed).is_err());
    }

    #[test]
    fn without_drives_to_mirror_nothing_is_exported() {
        for stage in [Stage::Prepared, Stage::Armed, Stage::Listening] {
            assert!(next(stage, &Request::Export, LOADED).is_err());
        }
        assert!(next(Stage::Blocked, &Request::CloseExport, LOADED).is_err());
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
            assert_eq!(next(stage, &abort(), LOADED).unwrap(), Stage::Aborted);
        }
        for stage in [Stage::Committed, Stage::Finished] {
            assert!(next(stage, &abort(), LOADED).is_err());
        }
    }

    #[test]
    fn a_wrong_request_is_named_with_the_stage() {
        let fault = next(Stage::Connected, &Request::Block, NOTHING).unwrap_err();
        assert!(fault.message.contains("Block") && fault.message.contains("connected"));
    }
}
