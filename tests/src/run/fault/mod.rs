//! Whatever can break during a migration, at each of its moments, and how it has to end then.
//!
//! | part | |
//! |---|---|
//! | [`Fault`], [`Moment`] | what breaks, and when |
//! | `trail` | reads both katamarans' journals and logs all along, and strikes |
//! | `disks` | what is about disks |
//! | `play` | one case, from the empty lab to the end of the traffic |
//! | `operator` | what the documentation tells an operator to do after it |
//! | `copies`, `judge` | what must hold |

mod copies;
mod disks;
mod judge;
mod kind;
mod moment;
mod operator;
mod play;
mod trail;

use std::fmt;

pub(super) use self::disks::{Mirror, all_ready, mirrors};
pub use self::kind::Fault;
pub use self::moment::Moment;
pub use self::play::{FaultRun, run_with_fault};
use crate::lab::QemuVersion;

/// Which fault, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultCase {
    /// Which QEMU. With the stand-in V has no disks.
    pub qemu: QemuVersion,
    /// What happens.
    pub fault: Fault,
    /// When it happens.
    pub moment: Moment,
    /// Whether V has a second network card.
    pub second_nic: bool,
}

impl FaultCase {
    /// All of one QEMU, with one network card or two.
    pub fn all(qemu: QemuVersion, second_nic: bool) -> impl Iterator<Item = Self> {
        let cases = Fault::ALL.into_iter().flat_map(move |fault| {
            Moment::ALL.into_iter().map(move |moment| Self {
                qemu,
                fault,
                moment,
                second_nic,
            })
        });
        cases.filter(|case| case.is_possible())
    }

    fn is_possible(self) -> bool {
        let mirrored =
            self.moment.is_of_disks() || matches!(self.moment, Moment::Copy | Moment::Stopped);
        let of_disks = self.fault.is_of_disks();
        if self.second_nic {
            // The stand-in has one, and disks do not care how many there are.
            return self.has_disks() && !of_disks && !self.moment.is_of_disks();
        }
        match self.has_disks() {
            // RAM has a path as well.
            false if of_disks => self.fault == Fault::PathSilent && self.moment == Moment::Stopped,
            false => !self.moment.is_of_disks(),
            true => !of_disks || mirrored,
        }
    }

    fn has_disks(self) -> bool {
        self.qemu != QemuVersion::StandIn
    }
}

impl fmt::Display for FaultCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.qemu, self.fault, self.moment)?;
        f.write_str(if self.second_nic { ", two NICs" } else { "" })
    }
}
