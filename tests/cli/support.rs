//! Running the command, and a QMP socket that knows who has called.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use katamaran_tests::lab::Process;
use katamaran_tests::run::katamaran_binary;
use tempfile::TempDir;

/// Longer than any of these commands may take: connecting to a silent monitor is given up after 5 s.
const PATIENCE: Duration = Duration::from_secs(9);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Fails unless the command exited with `status` and said each of `words` on standard error.
    #[track_caller]
    pub(crate) fn expect(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:#?}");
        }
    }
}

/// Runs the command to its end.
pub(crate) fn katamaran<S: AsRef<str>>(args: &[S]) -> Ended {
    let dir = TempDir::new().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let file = |path: &Path| Stdio::from(std::fs::File::create(path).unwrap());
    let mut command = Command::new(katamaran_binary().unwrap());
    command.args(args.iter().map(AsRef::as_ref));
    command
        .stdin(Stdio::null())
        .stdout(file(&out))
        .stderr(file(&err));
    let mut process = Process::spawn("katamaran", command, None).unwrap();
    let status = process.wait_until(Instant::now() + PATIENCE).unwrap();
    Ended {
        status: status.code(),
        stdout: std::fs::read_to_string(out).unwrap(),
        stderr: std::fs::read_to_string(err).unwrap(),
    }
}

/// A socket in the place of QEMU's monitor.
pub(crate) struct Monitor {
    dir: TempDir,
    listener: UnixListener,
}

impl Monitor {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { dir, listener }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("qmp")
    }

    /// Who has called, if anybody has.
    pub(crate) fn caller(&self) -> Option<UnixStream> {
        match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("accept: {error}"),
        }
    }

    /// The flags of a source that would run, were there a QEMU behind this socket.
    pub(crate) fn source_flags(&self) -> Vec<String> {
        let path = self.path().display().to_string();
        let flags = [
            "--mode",
            "source",
            "--qmp",
            &path,
            "--dest-ip",
            "192.0.2.2",
            "--vm-ip",
            "192.0.2.5",
            "--tap",
            "tap-of-nobody",
            "--shared-storage",
            "--insecure-plaintext",
        ];
        flags.map(str::to_owned).to_vec()
    }

    /// The same for a destination.
    pub(crate) fn destination_flags(&self) -> Vec<String> {
        let path = self.path().display().to_string();
        let flags = [
            "--mode",
            "dest",
            "--qmp",
            &path,
            "--tap",
            "tap-of-nobody",
            "--shared-storage",
            "--insecure-plaintext",
        ];
        flags.map(str::to_owned).to_vec()
    }
}

/// Flags with one of them set to another value (or left out, with `None`).
pub(crate) fn with(mut flags: Vec<String>, flag: &str, value: Option<&str>) -> Vec<String> {
    let at = flags.iter().position(|word| word == flag);
    match (at, value) {
        (Some(at), Some(value)) => value.clone_into(&mut flags[at + 1]),
        (Some(at), None) => {
            let takes_value = flags.get(at + 1).is_some_and(|next| !next.starts_with('-'));
            flags.drain(at..=at + usize::from(takes_value));
        }
        (None, Some(value)) => flags.extend([flag.to_owned(), value.to_owned()]),
        (None, None) => panic!("{flag} is not there"),
    }
    flags
}

/// Flags with more behind them.
pub(crate) fn and(mut flags: Vec<String>, more: &[&str]) -> Vec<String> {
    flags.extend(more.iter().map(|word| (*word).to_owned()));
    flags
}
