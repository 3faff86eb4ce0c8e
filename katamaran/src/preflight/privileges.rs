//! Capabilities: what the kernel lets this process do, and what a migration asks for.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::check::{Area, Check, Status};
use super::found::{Found, Side};
use crate::migrate::node::RUN_DIRECTORY;

const AREA: Area = Area::Privileges;
const SYS_ADMIN: u8 = 21;

/// A capability and what becomes of a migration without it.
struct Need {
    name: &'static str,
    /// One of these bits has it.
    bits: &'static [u8],
    /// On a source and on a destination.
    without: [Status; 2],
    text: &'static str,
}

const NEEDS: [Need; 6] = [
    Need {
        name: "cap-net-admin",
        bits: &[12],
        without: [Status::Missing; 2],
        text: "Devices, queues and programs can't be set up.",
    },
    Need {
        name: "cap-bpf",
        bits: &[39, SYS_ADMIN],
        without: [Status::Missing; 2],
        text: "The programs can't be loaded.",
    },
    Need {
        name: "cap-perfmon",
        bits: &[38, SYS_ADMIN],
        without: [Status::Degraded; 2],
        text: "The kernel can't be asked for its drops: the verdict is `unproven` at best.",
    },
    Need {
        name: "cap-sys-admin",
        bits: &[SYS_ADMIN],
        without: [Status::Degraded; 2],
        text: "The tap's network namespace can't be entered, nor the BPF file system mounted: start katamaran in that \
               namespace, and mount it first.",
    },
    Need {
        name: "cap-sys-ptrace",
        bits: &[19],
        without: [Status::Degraded; 2],
        text: "A QEMU of another user can't be looked into: name the tap with --tap and --tap-netns. What it leaves \
               unread in its tap can't be recovered, nor given back after an abort.",
    },
    Need {
        name: "cap-net-raw",
        bits: &[13],
        without: [Status::Degraded, Status::Missing],
        text: "Packets can't be put into the tap: the destination needs it for its bait frame, the source for what an \
               abort gives back.",
    },
];

pub(super) fn look(sides: &[Side], found: &mut Found) {
    let Some(effective) = effective() else {
        let why = "/proc/self/status tells no capabilities";
        found.push(Check::unchecked(AREA, "capabilities", why, "Mount /proc."));
        return;
    };
    if !in_nodes_user_namespace() {
        found.push(Check::missing(
            AREA,
            "user-namespace",
            "this process is in a user namespace of its own",
            "Capabilities count for that namespace only, not for the node's devices and programs: run katamaran \
             outside of it.",
        ));
    }
    for need in &NEEDS {
        found.push(judge(need, effective, sides));
    }
    found.push(run_directory());
}

/// A session's sockets for QEMU are made there.
fn run_directory() -> Check {
    let name = "run-directory";
    let directory = Path::new(RUN_DIRECTORY);
    let parent = directory.parent().unwrap_or(directory);
    let place = if directory.exists() {
        directory
    } else {
        parent
    };
    match access(place, AccessFlags::W_OK) {
        Ok(()) => Check::ok(AREA, name, format!("{} can be written to", place.display())),
        Err(errno) => Check::missing(
            AREA,
            name,
            format!("{} can't be written to: {errno}", place.display()),
            format!(
                "Sockets for QEMU are made in {RUN_DIRECTORY}: run katamaran as root, with that directory writable."
            ),
        ),
    }
}

fn judge(need: &Need, effective: u64, sides: &[Side]) -> Check {
    if need.bits.iter().any(|bit| effective >> bit & 1 == 1) {
        return Check::ok(AREA, need.name, "there");
    }
    let [source, destination] = need.without;
    let worst = sides.iter().any(|side| {
        let without = match side {
            Side::Source => source,
            Side::Destination => destination,
        };
        without == Status::Missing
    });
    let remedy = format!(
        "{} Run katamaran as root, or give it that capability.",
        need.text
    );
    if worst {
        Check::missing(AREA, need.name, "not there", remedy)
    } else {
        Check::degraded(AREA, need.name, "not there", remedy)
    }
}

fn effective() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/thread-self/status").ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The node's own maps every user to itself.
fn in_nodes_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| {
        map.split_whitespace().eq(["0", "0", "4294967295"])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(name: &str) -> &'static Need {
        NEEDS.iter().find(|need| need.name == name).unwrap()
    }

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(
            parse("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_the_side_decides_how_bad_it_is() {
        let both = [Side::Source, Side::Destination];
        let status = |name, set, sides: &[Side]| judge(need(name), set, sides).status;
        assert_eq!(status("cap-bpf", 1 << SYS_ADMIN, &both), Status::Ok);
        assert_eq!(status("cap-bpf", 0, &both), Status::Missing);
        assert_eq!(status("cap-net-raw", 0, &[Side::Source]), Status::Degraded);
        assert_eq!(status("cap-net-raw", 0, &both), Status::Missing);
    }
}
