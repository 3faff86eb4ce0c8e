//! What became of COMMIT, by what came back: a pure function.

use super::finish::Running;
use crate::control::{ControlError, FaultCode};
use crate::migrate::error::MigrateError;
use crate::migrate::message::Reply;

/// Where the VM may be after COMMIT.
#[derive(Debug)]
pub(crate) enum Fate {
    /// The destination runs it, or may: the source never resumes it by itself.
    Committed(Running),
    /// The destination does not and never will: the request has not left this node, or was not taken at the stage that the
    /// destination is in (`next()` in `destination/stage.rs` refuses before anything is done).
    NoEffect(ControlError),
}

/// What an answer to COMMIT means.
pub(crate) fn fate(answer: Result<Reply, ControlError>) -> Fate {
    match answer {
        Ok(Reply::Committed(resumed)) => Fate::Committed(Running::Yes(resumed)),
        Ok(_) => Fate::Committed(Running::Unknown(MigrateError::OutOfStep { what: "Commit" })),
        Err(error) if error.never_sent() => Fate::NoEffect(error),
        Err(ControlError::Fault { source }) if source.code == FaultCode::WrongState => {
            Fate::NoEffect(ControlError::Fault { source })
        }
        Err(source) => Fate::Committed(Running::Unknown(MigrateError::Session {
            doing: "commit",
            source: Box::new(source),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Fault;

    fn fault(code: FaultCode) -> ControlError {
        ControlError::Fault {
            source: Fault::new(code, "no"),
        }
    }

    #[test]
    fn only_a_commit_that_was_not_taken_has_no_effect() {
        let not_sent = ControlError::NotSent {
            source: Box::new(ControlError::Closed),
        };
        for nothing in [not_sent, fault(FaultCode::WrongState)] {
            assert!(matches!(fate(Err(nothing)), Fate::NoEffect(_)));
        }
        for unknown in [fault(FaultCode::Failed), ControlError::Closed] {
            let fate = fate(Err(unknown));
            assert!(matches!(fate, Fate::Committed(Running::Unknown(_))));
        }
        let fate = fate(Ok(Reply::Blocked));
        assert!(matches!(fate, Fate::Committed(Running::Unknown(_))));
    }
}
