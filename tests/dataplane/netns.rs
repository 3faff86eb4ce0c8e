//! Network namespaces with unique names, gone when dropped.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of this test.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub(crate) fn new(label: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ktmt-{}-{number}-{label}", std::process::id());
        execute("ip", &["netns", "add", &name]);
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        let netns = Self { name, file };
        // Duplicate address detection holds a new link's neighbour discovery up for seconds.
        for conf in ["all", "default"] {
            netns.sysctl(&format!("ipv6/conf/{conf}/accept_dad"), "0");
            netns.sysctl(&format!("ipv6/conf/{conf}/dad_transmits"), "0");
        }
        netns.ip("link set lo up");
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn inum(&self) -> u32 {
        u32::try_from(self.file.metadata().unwrap().ino()).unwrap()
    }

    /// Runs something on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `ip` with arguments separated by blanks.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    /// The same for any program. A blank inside an argument is written `_`.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        let arguments: Vec<String> = arguments
            .split_whitespace()
            .map(|argument| argument.replace('_', " "))
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.run(|| execute(program, &arguments))
    }

    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }

    pub(crate) fn ifindex(&self, device: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(device).unwrap())
    }

    /// A device's counter as `ip -s -j` shows it, e.g. `("tx", "packets")`.
    pub(crate) fn statistic(&self, device: &str, direction: &str, what: &str) -> u64 {
        let text = self.ip(&format!("-s -j link show dev {device}"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[0]["stats64"][direction][what].as_u64().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let gone = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !gone.is_ok_and(|status| status.success()) {
            println!("namespace {} could not be removed", self.name);
        }
    }
}

#[track_caller]
pub(crate) fn execute(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for a state, with a deadline.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}
