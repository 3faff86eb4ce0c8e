//! Where the data plane is pinned, and what a dead process left there.
//!
//! `/sys/fs/bpf/katamaran/<session>/<role>/`. The owner holds a lock on the role's directory for as
//! long as it lives, so a directory that can be locked belongs to nobody.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::session_id::SessionId;

use super::attach;
use super::error::EbpfError;
use crate::role::Role;

/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
const ROOT: &str = "/sys/fs/bpf/katamaran";

/// What a sweep found of one dead session.
#[derive(Debug)]
pub struct Swept {
    /// The session.
    pub session: SessionId,
    /// Its directory.
    pub path: PathBuf,
    /// Whether all of it is gone, and if not, why.
    pub outcome: Result<(), EbpfError>,
}

/// The pin directory of a living session.
#[derive(Debug)]
pub(super) struct PinDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl PinDirectory {
    /// Creates the directory; what a dead owner of the same name left in it is removed first.
    pub(super) fn claim(session: SessionId, role: Role) -> Result<Self, EbpfError> {
        mount_bpffs()?;
        let path = Path::new(ROOT)
            .join(session.to_string())
            .join(role.to_string());
        create(&path)?;
        let lock = lock_patiently(&path)?.ok_or(EbpfError::SessionLive { session, role })?;
        empty(&path)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory, and those above it that are empty then.
    pub(super) fn remove(self) -> Result<(), EbpfError> {
        remove_directories(&self.path)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EbpfError {
    let path = path.to_owned();
    move |source| EbpfError::Bpffs {
        operation,
        path,
        source,
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether the BPF file system is there for this process. A migration mounts it where it is not.
#[must_use]
pub fn is_mounted() -> bool {
    is_bpffs(Path::new(BPFFS))
}

fn mount_bpffs() -> Result<(), EbpfError> {
    let path = Path::new(BPFFS);
    if is_bpffs(path) {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|errno| failed("mount the BPF file system on", path)(errno.into()))
}

fn create(path: &Path) -> Result<(), EbpfError> {
    fs::create_dir_all(path).map_err(failed("create", path))
}

/// Locks a directory; `None` when somebody else has.
fn lock(path: &Path) -> Result<Option<Flock<File>>, EbpfError> {
    let directory = File::open(path).map_err(failed("open", path))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(failed("lock", path)(errno.into())),
    }
}

/// Like [`lock`], but [`stale_sessions`] of another process may hold it for a moment.
fn lock_patiently(path: &Path) -> Result<Option<Flock<File>>, EbpfError> {
    const TRIES: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(5);
    for _ in 1..TRIES {
        if let Some(lock) = lock(path)? {
            return Ok(Some(lock));
        }
        std::thread::sleep(PAUSE);
    }
    lock(path)
}

pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>, EbpfError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        found.push(entry.map_err(failed("list", path))?.path());
    }
    found.sort();
    Ok(found)
}

/// Removes all pins in a directory that nobody owns. A link goes with its pin.
fn empty(path: &Path) -> Result<(), EbpfError> {
    for pin in entries(path)? {
        attach::take_off(&pin)?;
    }
    Ok(())
}

fn remove_directories(path: &Path) -> Result<(), EbpfError> {
    fs::remove_dir(path).map_err(failed("remove", path))?;
    let above = path
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(ROOT));
    for directory in above {
        // Not empty: another role, another session. That is no failure, and neither is a race.
        if fs::remove_dir(directory).is_err() {
            break;
        }
    }
    Ok(())
}

/// Removes what processes that no longer run have left of the wanted sessions, and says what became of
/// each.
///
/// A redirect that a crashed migration left in place stops here, so want only sessions that are not to
/// be taken up again.
///
/// # Errors
///
/// When the pins can't be listed. Failures with single sessions are in their [`Swept`].
pub fn sweep(wanted: impl Fn(SessionId) -> bool) -> Result<Vec<Swept>, EbpfError> {
    let mut swept = Vec::new();
    for (session, path) in role_directories()? {
        if !wanted(session) {
            continue;
        }
        let outcome = match lock(&path) {
            Ok(None) => continue,
            Ok(Some(_lock)) => empty(&path).and_then(|()| remove_directories(&path)),
            Err(error) => Err(error),
        };
        swept.push(Swept {
            session,
            path,
            outcome,
        });
    }
    Ok(swept)
}

/// Sessions that have pins but no running process. Changes nothing.
///
/// # Errors
///
/// When the pins can't be listed.
pub fn stale_sessions() -> Result<Vec<SessionId>, EbpfError> {
    let mut stale = Vec::new();
    for (session, path) in role_directories()? {
        if lock(&path)?.is_some() && !stale.contains(&session) {
            stale.push(session);
        }
    }
    Ok(stale)
}

/// The roles of sessions that have pins but no running process. Changes nothing.
///
/// # Errors
///
/// When the pins can't be listed.
pub fn stale_roles() -> Result<Vec<(SessionId, Role)>, EbpfError> {
    let mut stale = Vec::new();
    for (session, path) in role_directories()? {
        let role = [Role::Source, Role::Destination]
            .into_iter()
            .find(|role| path.ends_with(role.to_string()));
        if let Some(role) = role
            && lock(&path)?.is_some()
        {
            stale.push((session, role));
        }
    }
    Ok(stale)
}

/// Removes what a process that no longer runs has left of one role of a session: a redirect stops here.
///
/// # Errors
///
/// A pin can't be removed. A filter of another network namespace is [`EbpfError::OtherNamespace`]; what comes before it is
/// removed.
pub fn sweep_role(session: SessionId, role: Role) -> Result<(), EbpfError> {
    let path = Path::new(ROOT)
        .join(session.to_string())
        .join(role.to_string());
    if !path.exists() {
        return Ok(());
    }
    let _lock = lock_patiently(&path)?.ok_or(EbpfError::SessionLive { session, role })?;
    empty(&path)?;
    remove_directories(&path)
}

/// All `<session>/<role>` directories; what is not named like one is not ours.
pub(super) fn role_directories() -> Result<Vec<(SessionId, PathBuf)>, EbpfError> {
    let root = Path::new(ROOT);
    if !is_bpffs(Path::new(BPFFS)) || !root.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for directory in entries(root)? {
        let name = directory
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let Some(session) = name.and_then(|name| name.parse().ok()) else {
            continue;
        };
        found.extend(entries(&directory)?.into_iter().map(|path| (session, path)));
    }
    Ok(found)
}
