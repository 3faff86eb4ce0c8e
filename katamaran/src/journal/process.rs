//! A process that can be told from a later one with the same number.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since the node was.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` when there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = started(&stat)?;
        Some(Self { pid, started })
    }

    /// Whether it still exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// Field 22 of `/proc/PID/stat`; the second is a name in parentheses that may contain anything. A process that has ended and was
/// not waited for is as good as gone.
fn started(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.exists());
        let other = ProcessId {
            started: own.started + 1,
            ..own
        };
        assert!(!other.exists());
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_no_field() {
        let fields = (3..=22).map(|n| match n {
            3 => "S".to_owned(),
            n => n.to_string(),
        });
        let stat = format!("7 (a) b) c) {}", fields.collect::<Vec<_>>().join(" "));
        assert_eq!(started(&stat), Some(22));
        assert_eq!(started(&stat.replace(" S ", " Z ")), None);
    }
}
