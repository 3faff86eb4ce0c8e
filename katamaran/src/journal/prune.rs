//! Settled journals that nobody asks for any more.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file::SETTLED;
use super::lock;

/// For whoever comes back on Monday to a source that is undecided since Friday.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// However many migrations a node has had since: some megabytes of memory.
const MOST: usize = 1024;

/// Removes settled journals that are older than a week, and the oldest of too many. What can't be removed stays.
pub fn prune(directory: &Path) {
    remove(&directory.join(SETTLED), SystemTime::now(), MOST);
}

fn remove(settled: &Path, now: SystemTime, most: usize) {
    let entries = fs::read_dir(settled).into_iter().flatten().flatten();
    let mut journals: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    journals.sort();
    let excess = journals.len().saturating_sub(most);
    for (index, (modified, path)) in journals.iter().enumerate() {
        let old = now.duration_since(*modified).is_ok_and(|age| age > KEPT);
        if (old || index < excess) && !is_in_use(path) {
            fs::remove_file(path).ok();
        }
    }
}

/// Somebody is at work on it, or it can't be told.
fn is_in_use(path: &Path) -> bool {
    let taken = File::open(path).map(|file| lock::is_taken(&file));
    !matches!(taken, Ok(Ok(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Journals of so many days' age.
    fn settled(ages: &[u64]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for age in ages {
            let file = File::create(directory.path().join(age.to_string())).unwrap();
            let modified = SystemTime::now() - Duration::from_secs(age * 24 * 3600);
            file.set_modified(modified).unwrap();
        }
        directory
    }

    fn left(directory: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_older_than_a_week_goes() {
        let directory = settled(&[1, 3, 6, 8, 30]);
        remove(directory.path(), SystemTime::now(), MOST);
        assert_eq!(left(&directory), ["1", "3", "6"]);
    }

    #[test]
    fn of_too_many_the_oldest_go_but_for_one_that_is_in_use() {
        let directory = settled(&[1, 2, 3, 4]);
        let oldest = directory.path().join("4");
        let held = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(oldest)
            .unwrap();
        assert!(lock::take(&held).unwrap());
        remove(directory.path(), SystemTime::now(), 2);
        assert_eq!(left(&directory), ["1", "2", "4"]);
    }
}
