//! The files: made, appended to, read, taken over, removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::JournalError;
use super::lock;
use super::record::{Header, Record, SCHEMA};
use super::story::Story;
use crate::role::Role;
use crate::session_id::SessionId;
use crate::wall_clock::now_us;

const SUFFIX: &str = ".journal";
/// What is under way to becoming a journal.
const DRAFT: &str = ".draft";
pub(super) const SETTLED: &str = "settled";

/// The journal of a migration that this process runs, or has taken over. Clones are the same one; it is locked until the
/// last of them is gone.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Open>);

#[derive(Debug)]
struct Open {
    file: File,
    path: Mutex<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    at_us: i64,
    #[serde(flatten)]
    record: Record,
}

/// A journal of this node.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Whether a process looks after it.
    pub living: bool,
    /// Whether nothing is left of it but what this node may be asked.
    pub settled: bool,
    /// What is in it.
    pub story: Result<Story, JournalError>,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::File {
        operation,
        path,
        source,
    }
}

impl Journal {
    /// Makes the journal of a migration that begins, locked from the moment when others can see it.
    ///
    /// # Errors
    /// The file system says no: nothing can be promised then.
    pub fn create(directory: &Path, header: Header) -> Result<Self, JournalError> {
        make_directory(directory)?;
        let path = directory.join(name(header.session, header.role));
        let mut draft = path.clone().into_os_string();
        draft.push(DRAFT);
        let draft = PathBuf::from(draft);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .append(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options
            .open(&draft)
            .map_err(failed("make the journal", &draft))?;
        lock::take(&file)
            .map_err(io::Error::from)
            .map_err(failed("lock the journal", &draft))?;
        let journal = Self(Arc::new(Open {
            file,
            path: Mutex::new(draft.clone()),
        }));
        journal.append(&Record::Begun(Box::new(header)))?;
        journal.move_to(&path)?;
        Ok(journal)
    }

    /// Writes a record down; when this returns, it outlives this process.
    ///
    /// # Errors
    /// It could not be written: what it tells of must not be done.
    pub fn append(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.path();
        let line = Line {
            at_us: now_us(),
            record: record.clone(),
        };
        let mut bytes = serde_json::to_vec(&line)
            .map_err(|e| failed("write to the journal", &path)(e.into()))?;
        bytes.push(b'\n');
        let mut file = &self.0.file;
        file.write_all(&bytes)
            .map_err(failed("write to the journal", &path))
    }

    /// Nothing is left of the migration.
    ///
    /// # Errors
    /// The file stays.
    pub fn remove(&self) -> Result<(), JournalError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(failed("remove the journal", &path)),
        }
    }

    /// Nothing is left of the migration but what this node may still be asked.
    ///
    /// # Errors
    /// The file stays where it is.
    pub fn settle(&self) -> Result<(), JournalError> {
        let path = self.path();
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        if directory.ends_with(SETTLED) {
            return Ok(());
        }
        let settled = directory.join(SETTLED);
        make_directory(&settled)?;
        self.move_to(&settled.join(name))
    }

    fn path(&self) -> PathBuf {
        let path = self.0.path.lock();
        path.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn move_to(&self, to: &Path) -> Result<(), JournalError> {
        let mut path = self.0.path.lock().unwrap_or_else(PoisonError::into_inner);
        fs::rename(&*path, to).map_err(failed("name the journal", to))?;
        *path = to.to_owned();
        Ok(())
    }
}

/// The journals in a directory, oldest first.
///
/// # Errors
/// The directory can't be read. That there is none is no error.
pub fn list(directory: &Path) -> Result<Vec<Found>, JournalError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("list", directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", directory))?.path();
        if !path.to_string_lossy().ends_with(SUFFIX) {
            continue;
        }
        match open(&path) {
            // It has just ended.
            Err(JournalError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.push(Found {
                path,
                living: true,
                settled: directory.ends_with(SETTLED),
                story: Err(error),
            }),
            Ok(file) => found.push(Found {
                living: lock::is_taken(&file)
                    .map_err(io::Error::from)
                    .map_err(failed("ask for the lock of", &path))?,
                settled: directory.ends_with(SETTLED),
                story: read(&file, &path),
                path,
            }),
        }
    }
    found.sort_by_key(|found| match &found.story {
        Ok(story) => (story.since_us, found.path.clone()),
        Err(_) => (i64::MAX, found.path.clone()),
    });
    Ok(found)
}

/// The journals of migrations that are settled on this node, and may matter to another one.
///
/// # Errors
/// The directory can't be read.
pub fn settled(directory: &Path) -> Result<Vec<Found>, JournalError> {
    list(&directory.join(SETTLED))
}

/// Takes over what a dead process has left; `None` when it lives, or somebody else was faster.
///
/// # Errors
/// It can't be read.
pub fn adopt(path: &Path) -> Result<Option<(Journal, Story)>, JournalError> {
    let file = match open(path) {
        Err(JournalError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        other => other?,
    };
    let taken = lock::take(&file)
        .map_err(io::Error::from)
        .map_err(failed("lock the journal", path))?;
    // Whoever had it before may have removed it.
    if !taken || !path.exists() {
        return Ok(None);
    }
    let story = read(&file, path)?;
    let journal = Journal(Arc::new(Open {
        file,
        path: Mutex::new(path.to_owned()),
    }));
    // What was torn off must not become the beginning of the next record.
    end_line(&journal, path)?;
    Ok(Some((journal, story)))
}

fn end_line(journal: &Journal, path: &Path) -> Result<(), JournalError> {
    let bytes = fs::read(path).map_err(failed("read", path))?;
    if bytes.last().is_none_or(|last| *last == b'\n') {
        return Ok(());
    }
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    let length = whole.map_or(0, |at| at as u64 + 1);
    journal
        .0
        .file
        .set_len(length)
        .map_err(failed("cut the torn line off", path))
}

fn open(path: &Path) -> Result<File, JournalError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true);
    options.open(path).map_err(failed("open the journal", path))
}

/// A last line without its end was being written when the process died: what it tells of was not done.
fn read(mut file: &File, path: &Path) -> Result<Story, JournalError> {
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(failed("read", path))?;
    let whole = match text.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &text[..end],
        None => &[],
    };
    let mut header = None;
    let mut records = Vec::new();
    for (index, line) in whole.split(|byte| *byte == b'\n').enumerate() {
        if header.is_none() {
            check_schema(line, path)?;
        }
        let Line { at_us, record } =
            serde_json::from_slice(line).map_err(|source| JournalError::Record {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?;
        match record {
            Record::Begun(first) if header.is_none() => header = Some((*first, at_us)),
            record => records.push(record),
        }
    }
    let (header, since_us) = header.ok_or_else(|| JournalError::NoHeader {
        path: path.to_owned(),
    })?;
    Ok(Story {
        header,
        since_us,
        records,
    })
}

/// Another schema may have another header: it is told by its number before anything else is read.
fn check_schema(line: &[u8], path: &Path) -> Result<(), JournalError> {
    let header: Value = serde_json::from_slice(line).unwrap_or_default();
    match header["schema"].as_u64() {
        Some(found) if found == u64::from(SCHEMA) => Ok(()),
        Some(found) => Err(JournalError::Schema {
            path: path.to_owned(),
            found,
        }),
        None => Err(JournalError::NoHeader {
            path: path.to_owned(),
        }),
    }
}

fn make_directory(directory: &Path) -> Result<(), JournalError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(failed("make directory", directory))
}

fn name(session: SessionId, role: Role) -> String {
    format!("{session}-{role}{SUFFIX}")
}
