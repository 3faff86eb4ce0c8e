//! Where an abort leaves the VM. QEMU is asked: that everything was undone does not say that the VM runs.

use std::fmt;

use crate::deadline;
use crate::migrate::error::chain;
use crate::qmp::Qmp;
use crate::qmp::command::QueryStatus;

/// What QEMU says of the VM after an abort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// It runs.
    Running,
    /// It is in another state.
    Standing(String),
    /// QEMU has ended.
    Gone,
    /// QEMU does not say.
    Unknown(String),
}

impl Left {
    /// Asks.
    pub(crate) async fn of(vm: &Qmp) -> Self {
        let asked = vm.execute_within(QueryStatus, deadline::QMP_LAST).await;
        match asked {
            Ok(status) if status.running => Self::Running,
            Ok(status) => Self::Standing(status.status.to_string()),
            Err(error) if error.is_closed() => Self::Gone,
            Err(error) => Self::Unknown(chain(&error)),
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("The VM runs on the source; it is safe to retry"),
            Self::Standing(state) => write!(
                f,
                "The VM is on the source and does not run: QEMU says {state}. Unless somebody wants it so, resume it there (`cont` on \
                 its QMP socket); then it is safe to retry"
            ),
            Self::Gone => f.write_str(
                "The VM's QEMU on the source has ended, and the VM with it; the destination never ran it",
            ),
            Self::Unknown(why) => write!(
                f,
                "The VM is on the source, and whether it runs could not be asked ({why}): look there before retrying"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vm_that_runs_is_said_to_run() {
        let others = [
            Left::Standing("paused".to_owned()),
            Left::Gone,
            Left::Unknown("no answer".to_owned()),
        ];
        assert!(Left::Running.to_string().contains("runs on the source"));
        for left in others {
            assert!(!left.to_string().contains("runs on the source"), "{left}");
        }
    }
}
