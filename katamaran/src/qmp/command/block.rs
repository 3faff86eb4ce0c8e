//! Queries about disks.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::commands;
use crate::deadline;

/// Asks for the guest's disks.
#[derive(Debug, Clone, Serialize)]
pub struct QueryBlock;

/// A disk, as its front end shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct BlockInfo {
    /// The back end's name; empty with `-blockdev`.
    pub device: String,
    /// The device's id or object path.
    pub qdev: Option<String>,
    /// The medium in it: QEMU's `BlockDeviceInfo`.
    pub inserted: Option<Value>,
}

impl BlockInfo {
    /// The node at the top of the disk's graph.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.inserted.as_ref()?.get("node-name")?.as_str()
    }

    /// The file or URL that the medium is in.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.inserted.as_ref()?.get("file")?.as_str()
    }

    /// Whether the guest cannot write to it.
    #[must_use]
    pub fn read_only(&self) -> Option<bool> {
        self.inserted.as_ref()?.get("ro")?.as_bool()
    }

    /// The driver of the format, such as `raw` or `qcow2`.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.inserted.as_ref()?.get("drv")?.as_str()
    }

    /// The size that the guest sees, in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> Option<u64> {
        self.inserted
            .as_ref()?
            .get("image")?
            .get("virtual-size")?
            .as_u64()
    }
}

commands! {
    QueryBlock = "query-block", within deadline::QMP_QUICK => Vec<BlockInfo>;
}
