//! What `/proc` says of a process's network: its taps, its vhost descriptors, its namespace.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::DiscoverError;
use crate::net::tapfd::TapQueues;
use crate::net::{NetError, NetNs};

/// A descriptor of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapDescriptor {
    /// Its number in the process.
    pub fd: i32,
    /// The tap's name.
    pub name: String,
}

/// A process as far as its network is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its tap descriptors, by number. A multi-queue tap has one for each queue.
    pub taps: Vec<TapDescriptor>,
    /// Its descriptors of `/dev/vhost-net`.
    pub vhost_fds: Vec<i32>,
}

impl Process {
    /// Reads `/proc/PID/fd` and `/proc/PID/fdinfo`.
    ///
    /// # Errors
    /// There is no such process, or it is not ours to look at.
    pub fn read(pid: i32) -> Result<Self, DiscoverError> {
        let fail = |path: &Path, source| DiscoverError::Proc {
            pid,
            path: path.to_owned(),
            source,
        };
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        let entries = fs::read_dir(&directory).map_err(|error| fail(&directory, error))?;
        let mut process = Self {
            pid,
            taps: Vec::new(),
            vhost_fds: Vec::new(),
        };
        for entry in entries {
            let entry = entry.map_err(|error| fail(&directory, error))?;
            let Some(fd) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A descriptor may be closed while we look: that is one descriptor less.
            let Some(target) = unless_gone(fs::read_link(entry.path()))
                .map_err(|error| fail(&entry.path(), error))?
            else {
                continue;
            };
            if target == Path::new("/dev/vhost-net") {
                process.vhost_fds.push(fd);
            } else if target == Path::new("/dev/net/tun") {
                let path = PathBuf::from(format!("/proc/{pid}/fdinfo/{fd}"));
                let info =
                    unless_gone(fs::read_to_string(&path)).map_err(|error| fail(&path, error))?;
                if let Some(name) = info.as_deref().and_then(tap_name) {
                    process.taps.push(TapDescriptor {
                        fd,
                        name: name.to_owned(),
                    });
                }
            }
        }
        process.taps.sort_by_key(|tap| tap.fd);
        process.vhost_fds.sort_unstable();
        Ok(process)
    }

    /// The names of its taps, each once.
    #[must_use]
    pub fn tap_names(&self) -> Vec<String> {
        let names: BTreeSet<_> = self.taps.iter().map(|tap| tap.name.clone()).collect();
        names.into_iter().collect()
    }

    /// The kernel's vhost worker moves its packets.
    #[must_use]
    pub fn vhost(&self) -> bool {
        !self.vhost_fds.is_empty()
    }

    /// The process's own network namespace.
    ///
    /// # Errors
    /// The process is gone, or not ours to look at.
    pub fn netns(&self) -> Result<NetNs, NetError> {
        NetNs::of_pid(self.pid)
    }

    /// The namespace that a tap is in now: the tap itself knows (it may have been handed to the
    /// process from elsewhere); where it can't be asked, the process's own.
    ///
    /// # Errors
    /// The process is gone, or not ours to look at.
    pub fn tap_netns(&self, tap: &str) -> Result<NetNs, NetError> {
        let fds: Vec<_> = self
            .taps
            .iter()
            .filter(|entry| entry.name == tap)
            .map(|entry| entry.fd)
            .collect();
        match TapQueues::duplicate_fds(self.pid, tap, &fds).and_then(|queues| queues.netns()) {
            Ok(netns) => Ok(netns),
            Err(error) => {
                tracing::debug!(pid = self.pid, tap, %error, "the tap can't be asked for its namespace");
                self.netns()
            }
        }
    }
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name in a tun descriptor's fdinfo (`iff:\ttap0`), absent while it is attached to none.
fn tap_name(fdinfo: &str) -> Option<&str> {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("iff:"))
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taps_name_is_read_from_its_fdinfo() {
        let info = "pos:\t0\nflags:\t0104002\nmnt_id:\t26\nino:\t117\niff:\ttap0_kata\n";
        assert_eq!(tap_name(info), Some("tap0_kata"));
        assert_eq!(tap_name("pos:\t0\niff:\t\n"), None);
        assert_eq!(tap_name("pos:\t0\n"), None);
    }

    #[test]
    fn this_process_can_be_read_and_a_missing_one_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = Process::read(pid).unwrap();
        assert!(!own.vhost());
        assert_eq!(own.netns().unwrap(), NetNs::current().unwrap());
        assert!(matches!(
            Process::read(i32::MAX),
            Err(DiscoverError::Proc { .. })
        ));
    }
}
