//! Finds what the user need not name: QEMU's taps, their namespace, vhost, and the underlay.
//!
//! All of it follows from QEMU's process id, which the QMP socket's peer credentials give. Reads
//! `/proc` only; flags of the user override what is found.

mod cards;
mod process;
mod wiring;

use std::path::PathBuf;

use crate::net::{NetError, NetNs};

pub use cards::{Card, cards};
pub use process::{Process, TapDescriptor};
pub use wiring::{Pod, Wiring, wiring};

/// What can't be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// A file of the process can't be read.
    #[error("look into process {pid}: read {}", .path.display())]
    Proc {
        /// The process.
        pid: i32,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process holds no tap.
    #[error("process {pid} has no tap open; name the VM's tap with --tap")]
    NoTap {
        /// The process.
        pid: i32,
    },
    /// The process holds several taps.
    #[error("process {pid} has several taps open ({}); name the VM's with --tap", .candidates.join(", "))]
    SeveralTaps {
        /// The process.
        pid: i32,
        /// Their names.
        candidates: Vec<String>,
    },
    /// The tap that the user named is not one that the process holds.
    #[error("process {pid} does not have tap {wanted} open{}", or_these(.candidates))]
    NotItsTap {
        /// The process.
        pid: i32,
        /// The name given.
        wanted: String,
        /// What it does hold.
        candidates: Vec<String>,
    },
    /// The namespace can't be opened.
    #[error("find the network namespace of process {pid}")]
    NetNs {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: NetError,
    },
    /// The kernel does not tell how the tap is wired.
    #[error("find the way from the node to tap {tap}")]
    Wiring {
        /// The tap.
        tap: String,
        /// Why.
        #[source]
        source: NetError,
    },
    /// Nothing in the tap's namespace sends frames to it.
    #[error(
        "tap {tap} is in another network namespace than katamaran ({netns}), and no device there has a filter that \
         sends its frames to the tap: of Kata's models only `tcfilter` is known (internetworking_model in its \
         configuration); for any other wiring start katamaran in the tap's namespace"
    )]
    NotJoined {
        /// The tap.
        tap: String,
        /// Its namespace.
        netns: String,
    },
    /// Several devices send frames to the tap.
    #[error("both {} and {} are joined with tap {tap} by filters: which of them leads to the node can't be told", .devices[0], .devices[1])]
    JoinedTwice {
        /// The tap.
        tap: String,
        /// Two of them.
        devices: [String; 2],
    },
    /// The device that is joined with the tap has no end in the node's namespace.
    #[error(
        "tap {tap} is joined with {device}, a {kind}: only a veth into the namespace that katamaran runs in can be \
         used; start katamaran in the node's own namespace"
    )]
    NoNodeEnd {
        /// The tap.
        tap: String,
        /// The device in its namespace.
        device: String,
        /// What it is.
        kind: String,
    },
}

fn or_these(candidates: &[String]) -> String {
    if candidates.is_empty() {
        String::new()
    } else {
        format!("; it has {}", candidates.join(", "))
    }
}

/// The VM's tap, as found through its QEMU.
#[derive(Debug, Clone)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// QEMU's descriptors of it: one for each queue.
    pub descriptors: Vec<i32>,
    /// The namespace it is in.
    pub netns: NetNs,
    /// The kernel's vhost worker, not QEMU, moves its packets.
    pub vhost: bool,
}

/// Finds the VM's tap: the only one that the process holds, or the one called `wanted`.
///
/// # Errors
/// There is none, there are several (all of them are listed), or the process can't be looked at.
pub fn tap(pid: i32, wanted: Option<&str>) -> Result<Tap, DiscoverError> {
    let process = Process::read(pid)?;
    let name = choose(pid, process.tap_names(), wanted)?;
    let netns = process
        .tap_netns(&name)
        .map_err(|source| DiscoverError::NetNs { pid, source })?;
    Ok(Tap {
        descriptors: process
            .taps
            .iter()
            .filter(|tap| tap.name == name)
            .map(|tap| tap.fd)
            .collect(),
        name,
        netns,
        vhost: process.vhost(),
    })
}

/// All taps that the process holds, each in its namespace, by name.
///
/// # Errors
/// There is none, or the process can't be looked at.
pub fn taps(pid: i32) -> Result<Vec<Tap>, DiscoverError> {
    let names = Process::read(pid)?.tap_names();
    if names.is_empty() {
        return Err(DiscoverError::NoTap { pid });
    }
    names.iter().map(|name| tap(pid, Some(name))).collect()
}

fn choose(
    pid: i32,
    candidates: Vec<String>,
    wanted: Option<&str>,
) -> Result<String, DiscoverError> {
    if let Some(wanted) = wanted {
        return if candidates.iter().any(|name| name == wanted) {
            Ok(wanted.to_owned())
        } else {
            Err(DiscoverError::NotItsTap {
                pid,
                wanted: wanted.to_owned(),
                candidates,
            })
        };
    }
    match candidates.as_slice() {
        [] => Err(DiscoverError::NoTap { pid }),
        [only] => Ok(only.clone()),
        [_, _, ..] => Err(DiscoverError::SeveralTaps { pid, candidates }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_only_tap_is_chosen() {
        assert_eq!(choose(7, names(&["tap0"]), None).unwrap(), "tap0");
    }

    #[test]
    fn several_taps_are_listed_with_the_flag_that_settles_it() {
        let error = choose(7, names(&["tap0", "tap1"]), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("tap0, tap1") && error.contains("--tap"),
            "{error}"
        );
        assert_eq!(
            choose(7, names(&["tap0", "tap1"]), Some("tap1")).unwrap(),
            "tap1"
        );
    }

    #[test]
    fn a_tap_of_somebody_else_is_refused() {
        let error = choose(7, names(&["tap0"]), Some("tap9")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "process 7 does not have tap tap9 open; it has tap0"
        );
        assert!(matches!(
            choose(7, vec![], None),
            Err(DiscoverError::NoTap { pid: 7 })
        ));
    }
}
