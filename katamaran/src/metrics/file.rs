//! The metrics file: counters of all runs on this node, for node_exporter's textfile collector.
//!
//! katamaran runs once per migration, so each run reads what the runs before it have counted, adds its
//! own and puts the whole back: a temporary file in the same directory, renamed over the old one.
//! Several katamarans may share a file. Beside it lies `FILE.lock`, whose bytes are locked (open file
//! description locks, which end with the process, however it ends):
//!
//! | byte | held by | meaning |
//! |---|---|---|
//! | 0 | who reads, adds and writes | one at a time |
//! | derived from session and role | a migration, to its end | its gauges are alive |
//!
//! The gauges of a migration whose byte nobody holds are what a katamaran left that was killed. Who finds
//! them takes them away and counts the migration as `crashed`.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::catalogue::MIGRATIONS;
use super::decode::decode;
use super::encode::encode;
use super::error::MetricsError;
use super::page::Page;
use super::vocabulary::CRASHED;
use crate::deadline;
use crate::role::Role;
use crate::session_id::SessionId;

/// Everybody may read it: node_exporter runs as a user of its own.
const MODE: u32 = 0o644;
/// Only katamaran may hold it up.
const LOCK_MODE: u32 = 0o600;
/// Between two tries for the lock. It is held for one small file at a time.
const RETRY: Duration = Duration::from_millis(5);

/// The file, and this process's share in it.
#[derive(Debug)]
pub(super) struct MetricsFile {
    path: PathBuf,
    lock: File,
    /// The migration whose byte this process holds.
    claimed: Option<(Role, SessionId)>,
}

impl MetricsFile {
    /// Opens the file, or makes one, and sees that it can be added to.
    pub(super) fn open(path: &Path) -> Result<Self, MetricsError> {
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .open(beside(path, "lock"))
            .map_err(|source| MetricsError::file(path, "open the lock of", source))?;
        let mut file = Self {
            path: path.to_owned(),
            lock,
            claimed: None,
        };
        file.update(&Page::default(), None)?;
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds `counted`, and shows the gauges of the migration that this process is in, if any.
    pub(super) fn update(
        &mut self,
        counted: &Page,
        live: Option<(Role, SessionId, &Page)>,
    ) -> Result<(), MetricsError> {
        self.lock_all()?;
        let result = self.rewrite(counted, live);
        let unlocked = self.set(libc::F_UNLCK, 0);
        result?;
        unlocked.map_err(|source| MetricsError::file(&self.path, "unlock", source))
    }

    fn rewrite(
        &mut self,
        counted: &Page,
        live: Option<(Role, SessionId, &Page)>,
    ) -> Result<(), MetricsError> {
        let mut page = Page::zero();
        page.add(&self.read()?);
        if let Some((role, session)) = self.claimed {
            page.forget(role.name(), session);
        }
        self.bury(&mut page)?;
        self.claim(live.map(|(role, session, _)| (role, session)))?;
        page.add(counted);
        if let Some((_, _, gauges)) = live {
            page.add(gauges);
        }
        page.complete();
        self.replace(&encode(&page))
            .map_err(|source| MetricsError::file(&self.path, "write", source))
    }

    fn read(&self) -> Result<Page, MetricsError> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => decode(&text).map_err(|source| MetricsError::Corrupt {
                path: self.path.clone(),
                source,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Page::default()),
            Err(source) => Err(MetricsError::file(&self.path, "read", source)),
        }
    }

    /// Takes away the gauges of migrations whose katamaran is gone, and counts these.
    fn bury(&self, page: &mut Page) -> Result<(), MetricsError> {
        for (role, session) in page.migrations() {
            let held = self
                .is_held(byte(role, session))
                .map_err(|source| MetricsError::file(&self.path, "look at the locks of", source))?;
            if !held {
                page.forget(role, session);
                page.count(&MIGRATIONS, &[role, CRASHED], 1.0);
            }
        }
        Ok(())
    }

    /// Holds the byte of `migration`, and no other.
    fn claim(&mut self, migration: Option<(Role, SessionId)>) -> Result<(), MetricsError> {
        if self.claimed == migration {
            return Ok(());
        }
        let failed = |source| MetricsError::file(&self.path, "lock a migration's byte of", source);
        if let Some((role, session)) = self.claimed {
            self.set(libc::F_UNLCK, byte(role.name(), session))
                .map_err(failed)?;
        }
        if let Some((role, session)) = migration {
            self.set(libc::F_WRLCK, byte(role.name(), session))
                .map_err(failed)?;
        }
        self.claimed = migration;
        Ok(())
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        // Not *.prom, which the collector would read. Whatever a killed katamaran left there goes first.
        let temporary = beside(&self.path, "tmp");
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }

    fn lock_all(&self) -> Result<(), MetricsError> {
        let began = Instant::now();
        loop {
            match self.set(libc::F_WRLCK, 0) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(MetricsError::file(&self.path, "lock", source)),
            }
            if began.elapsed() >= deadline::METRICS_LOCK {
                return Err(MetricsError::Busy {
                    path: self.path.clone(),
                    within: deadline::METRICS_LOCK,
                });
            }
            std::thread::sleep(RETRY);
        }
    }

    fn set(&self, kind: libc::c_int, at: i64) -> io::Result<()> {
        let range = range(kind, at);
        match fcntl(&self.lock, FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => Ok(()),
            Err(Errno::EACCES | Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether another process (or another [`MetricsFile`] of this one) holds this byte.
    fn is_held(&self, at: i64) -> io::Result<bool> {
        let mut range = range(libc::F_WRLCK, at);
        fcntl(&self.lock, FcntlArg::F_OFD_GETLK(&mut range))?;
        Ok(i32::from(range.l_type) != libc::F_UNLCK)
    }
}

/// `katamaran.prom` and `lock` make `katamaran.prom.lock`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The byte that stands for a migration: above 0, and within what a lock can address.
fn byte(role: &str, session: SessionId) -> i64 {
    let side = i64::from(role == Role::Destination.name());
    // 61 bits of the session: two that share a byte are not to be met.
    let session = i64::try_from(session.0 >> 3).unwrap_or_default();
    1 + (session << 1) + side
}

fn range(kind: libc::c_int, start: i64) -> libc::flock {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "F_WRLCK, F_UNLCK and SEEK_SET are 0 to 2"
    )]
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock {
        l_type,
        l_whence,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::metrics::catalogue::{ACTIVE, LOST, START_TIME};
    use crate::metrics::page::Value;

    const A: SessionId = SessionId(0xa000);
    const B: SessionId = SessionId(0xb000);

    struct Shared {
        dir: TempDir,
    }

    impl Shared {
        fn new() -> Self {
            Self {
                dir: TempDir::new().unwrap(),
            }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("katamaran.prom")
        }

        fn open(&self) -> MetricsFile {
            MetricsFile::open(&self.path()).unwrap()
        }

        fn number(&self, family: &'static crate::metrics::Family, labels: &[&str]) -> Option<f64> {
            let page = decode(&std::fs::read_to_string(self.path()).unwrap()).unwrap();
            let found = page.series(family).find(|(l, _)| l.as_slice() == labels);
            found.map(|(_, value)| match value {
                Value::Number(number) => *number,
                Value::Histogram(_) => panic!("a histogram"),
            })
        }
    }

    fn lost(packets: f64) -> Page {
        let mut page = Page::default();
        page.count(&LOST, &["source"], packets);
        page
    }

    fn gauges(role: Role, session: SessionId) -> Page {
        let mut page = Page::default();
        page.set(&START_TIME, &[role.name(), &session.to_string()], 1.0);
        page
    }

    #[test]
    fn counts_add_up_over_runs_and_others_may_read_them() {
        let shared = Shared::new();
        for _ in 0..3 {
            shared.open().update(&lost(2.0), None).unwrap();
        }
        assert_eq!(shared.number(&LOST, &["source"]), Some(6.0));
        let mode = std::fs::metadata(shared.path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o644);
        let mut left: Vec<_> = std::fs::read_dir(shared.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["katamaran.prom", "katamaran.prom.lock"]);
    }

    #[test]
    fn a_new_file_counts_nothing_yet() {
        let shared = Shared::new();
        drop(shared.open());
        assert_eq!(
            shared.number(&MIGRATIONS, &["source", "success"]),
            Some(0.0)
        );
        assert_eq!(shared.number(&LOST, &["source"]), None);
        assert_eq!(shared.number(&ACTIVE, &["source"]), Some(0.0));
    }

    #[test]
    fn many_at_once_lose_no_count() {
        let shared = Shared::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        shared.open().update(&lost(1.0), None).unwrap();
                    }
                });
            }
        });
        assert_eq!(shared.number(&LOST, &["source"]), Some(80.0));
    }

    #[test]
    fn migrations_side_by_side_show_their_own_gauges_until_they_end() {
        let shared = Shared::new();
        let (mut a, mut b) = (shared.open(), shared.open());
        a.update(
            &Page::default(),
            Some((Role::Source, A, &gauges(Role::Source, A))),
        )
        .unwrap();
        // Both sides of a migration may be on one node.
        let to = Role::Destination;
        b.update(&Page::default(), Some((to, A, &gauges(to, A))))
            .unwrap();
        assert_eq!(shared.number(&ACTIVE, &["source"]), Some(1.0));
        assert_eq!(shared.number(&ACTIVE, &["destination"]), Some(1.0));
        a.update(&lost(1.0), None).unwrap();
        assert_eq!(shared.number(&ACTIVE, &["source"]), Some(0.0));
        assert_eq!(shared.number(&ACTIVE, &["destination"]), Some(1.0));
        b.update(&Page::default(), None).unwrap();
        assert_eq!(shared.number(&ACTIVE, &["destination"]), Some(0.0));
        assert_eq!(shared.number(&MIGRATIONS, &["source", CRASHED]), Some(0.0));
    }

    #[test]
    fn what_a_killed_katamaran_left_is_taken_away_and_counted_once() {
        let shared = Shared::new();
        let mut killed = shared.open();
        killed
            .update(
                &Page::default(),
                Some((Role::Source, A, &gauges(Role::Source, A))),
            )
            .unwrap();
        let mut alive = shared.open();
        alive
            .update(
                &Page::default(),
                Some((Role::Source, B, &gauges(Role::Source, B))),
            )
            .unwrap();
        assert_eq!(shared.number(&ACTIVE, &["source"]), Some(2.0));
        // Its descriptors are closed, as by a SIGKILL; nothing is said.
        drop(killed);
        for _ in 0..2 {
            drop(shared.open());
            assert_eq!(shared.number(&ACTIVE, &["source"]), Some(1.0));
            assert_eq!(shared.number(&MIGRATIONS, &["source", CRASHED]), Some(1.0));
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_named_and_left_as_it_is() {
        for text in ["", "hello\n", "node_load1 1\n# EOF\n"] {
            let shared = Shared::new();
            std::fs::write(shared.path(), text).unwrap();
            let error = MetricsFile::open(&shared.path()).unwrap_err();
            assert!(
                error.to_string().contains("katamaran.prom"),
                "{text:?}: {error}"
            );
            assert_eq!(std::fs::read_to_string(shared.path()).unwrap(), text);
        }
    }

    #[test]
    fn what_spoils_the_file_meanwhile_is_not_overwritten() {
        let shared = Shared::new();
        let mut file = shared.open();
        std::fs::write(shared.path(), "spoilt").unwrap();
        file.update(&lost(1.0), None).unwrap_err();
        assert_eq!(std::fs::read_to_string(shared.path()).unwrap(), "spoilt");
        // The lock is free again.
        std::fs::remove_file(shared.path()).unwrap();
        shared.open().update(&lost(1.0), None).unwrap();
        file.update(&lost(1.0), None).unwrap();
        assert_eq!(shared.number(&LOST, &["source"]), Some(2.0));
    }

    #[test]
    fn a_temporary_file_that_was_left_is_in_nobodys_way() {
        let shared = Shared::new();
        std::fs::write(beside(&shared.path(), "tmp"), "half a pa").unwrap();
        shared.open().update(&lost(1.0), None).unwrap();
        assert!(!beside(&shared.path(), "tmp").exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let shared = Shared::new();
        let path = shared.dir.path().join("none/katamaran.prom");
        let error = MetricsFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("none/katamaran.prom"), "{error}");
    }

    #[test]
    fn every_migration_has_a_byte_of_its_own_that_can_be_locked() {
        for session in [SessionId(0), SessionId(u64::MAX), A] {
            let bytes = [byte("source", session), byte("destination", session)];
            assert!(bytes.iter().all(|at| *at > 0), "{bytes:?}");
            assert_ne!(bytes[0], bytes[1]);
        }
    }
}
