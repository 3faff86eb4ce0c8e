//! Names of network namespaces and of the devices in them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::net::if_::if_indextoname;

use crate::net::NetNs;

/// Before an unknown namespace is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What has a name, as of when it was needed first.
#[derive(Debug, Default)]
pub(super) struct Places {
    namespaces: HashMap<u32, Namespace>,
    devices: HashMap<(u32, u32), String>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Namespace {
    name: String,
    path: PathBuf,
}

impl Places {
    /// A namespace's name: `host`, its name in `/run/netns`, or a process in it. `None` where nothing that
    /// can be seen from here is in it.
    pub(super) fn namespace(&mut self, inum: u32) -> Option<String> {
        self.find(inum).map(|namespace| namespace.name.clone())
    }

    /// Notes what a device is called.
    pub(super) fn note_device(&mut self, inum: u32, ifindex: u32, name: &str) {
        let known = self.devices.entry((inum, ifindex)).or_default();
        if known != name {
            name.clone_into(known);
        }
    }

    /// A device's name, if it is known or the namespace can be asked.
    pub(super) fn device(&mut self, inum: u32, ifindex: u32) -> Option<String> {
        if ifindex == 0 || inum == 0 {
            return None;
        }
        if let Some(name) = self.devices.get(&(inum, ifindex)) {
            return Some(name.clone());
        }
        let netns = NetNs::open(&self.find(inum)?.path).ok()?;
        // The namespace may be another one by now.
        if netns.inode() != u64::from(inum) {
            return None;
        }
        let name = netns.run(|| if_indextoname(ifindex)).ok()?.ok()?;
        let name = name.to_string_lossy().into_owned();
        if name.is_empty() {
            return None;
        }
        self.note_device(inum, ifindex, &name);
        Some(name)
    }

    fn find(&mut self, inum: u32) -> Option<&Namespace> {
        if inum == 0 {
            return None;
        }
        let may_look = self.looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN);
        if !self.namespaces.contains_key(&inum) && may_look {
            self.look();
        }
        self.namespaces.get(&inum)
    }

    /// Names before processes, the host's before others.
    fn look(&mut self) {
        self.looked = Some(Instant::now());
        self.note(Path::new("/proc/1/ns/net"), || "host".to_owned());
        for entry in entries("/run/netns") {
            self.note(&entry, || file_name(&entry));
        }
        for process in entries("/proc") {
            if file_name(&process)
                .bytes()
                .all(|byte| byte.is_ascii_digit())
            {
                self.note(&process.join("ns/net"), || named_by(&process));
            }
        }
    }

    fn note(&mut self, path: &Path, name: impl FnOnce() -> String) {
        let Some(inum) = fs::metadata(path)
            .ok()
            .and_then(|metadata| u32::try_from(metadata.ino()).ok())
        else {
            return;
        };
        self.namespaces.entry(inum).or_insert_with(|| Namespace {
            name: name(),
            path: path.to_owned(),
        });
    }
}

/// `pid 1234 (qemu-system-x86)`
fn named_by(process: &Path) -> String {
    let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("pid {} ({})", file_name(process), command.trim())
}

fn entries(directory: &str) -> impl Iterator<Item = PathBuf> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.into_iter()
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_and_its_loopback_have_names() {
        let own = u32::try_from(NetNs::current().unwrap().inode()).unwrap();
        let mut places = Places::default();
        assert!(places.namespace(own).is_some());
        assert_eq!(places.device(own, 1).as_deref(), Some("lo"));
        assert_eq!(places.device(own, 0x7fff_fff0), None);
    }

    #[test]
    fn what_is_not_there_has_no_name() {
        let mut places = Places::default();
        assert_eq!(places.namespace(0), None);
        assert_eq!(places.namespace(7), None);
        assert_eq!(places.device(7, 1), None);
        places.note_device(7, 1, "tap0");
        assert_eq!(places.device(7, 1).as_deref(), Some("tap0"));
    }
}
