//! Where this process runs, and whether the other side runs under the same kernel.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::wire::Place;

impl Place {
    /// This node, with these processes of the migration.
    pub(super) fn here(qemu: Option<i32>) -> Self {
        let own = i32::try_from(std::process::id()).ok();
        Self {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            pid_namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |ns| ns.ino()),
            processes: qemu.into_iter().chain(own).collect(),
        }
    }

    /// Both run under one kernel, where files and devices have the same numbers.
    pub(super) fn shares_kernel_with(&self, other: &Self) -> bool {
        !self.boot_id.is_empty() && self.boot_id == other.boot_id
    }

    /// The other side's processes, as far as they can be met here.
    pub(super) fn met_here(&self, other: &Self) -> Vec<i32> {
        if self.shares_kernel_with(other)
            && self.pid_namespace != 0
            && self.pid_namespace == other.pid_namespace
        {
            other.processes.clone()
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_met_under_the_same_kernel_only() {
        let here = Place::here(Some(7));
        assert_eq!(here.met_here(&here), here.processes);
        assert!(here.processes.contains(&7) && here.processes.len() == 2);
        let elsewhere = Place {
            boot_id: "another".into(),
            ..here.clone()
        };
        assert_eq!(here.met_here(&elsewhere), Vec::<i32>::new());
        let contained = Place {
            pid_namespace: 1,
            ..here.clone()
        };
        assert!(here.shares_kernel_with(&contained));
        assert_eq!(here.met_here(&contained), Vec::<i32>::new());
    }
}
