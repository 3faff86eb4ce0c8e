//! The lab's other kernels: Debian's for clouds, unpacked by `scripts/setup.sh`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::image::cache_dir;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Bookworm's: no TCX, no decapsulation by programs. Guests run it, too.
    V6_1,
    /// Of bookworm-backports.
    V6_12,
}

impl Kernel {
    /// All of them, the oldest first.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// The kernel itself, as `-kernel` takes it.
    ///
    /// # Errors
    ///
    /// When `scripts/setup.sh` has not been run.
    pub fn image(self) -> Result<PathBuf> {
        single(&self.root().join("boot"), |name| {
            name.starts_with("vmlinuz-")
        })
    }

    /// The directory of its modules: what would be /lib/modules/VERSION.
    ///
    /// # Errors
    ///
    /// When `scripts/setup.sh` has not been run.
    pub fn modules(self) -> Result<PathBuf> {
        single(&self.root().join("lib/modules"), |_| true)
    }

    /// Where its package is unpacked.
    fn root(self) -> PathBuf {
        cache_dir().join(format!("kernel-{self}"))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL
            .into_iter()
            .find(|kernel| kernel.to_string() == text)
        {
            Some(kernel) => Ok(kernel),
            None => bail!("unknown kernel {text}: 6.1 or 6.12"),
        }
    }
}

/// The one entry of a directory whose name is accepted.
fn single(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("read {}: has scripts/setup.sh been run?", dir.display()))?;
    entries
        .flatten()
        .find(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .with_context(|| format!("nothing fitting in {}", dir.display()))
}
