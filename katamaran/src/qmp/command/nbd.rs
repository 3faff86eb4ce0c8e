//! QEMU's own NBD server and what it exports.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Done, commands};
use crate::deadline;

/// Starts the NBD server. A QEMU has one at most.
#[derive(Debug, Clone, Serialize)]
pub struct NbdServerStart {
    /// Where it listens.
    pub addr: ServerAddress,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, Serialize)]
pub struct ServerAddress {
    #[serde(rename = "type")]
    kind: &'static str,
    data: ServerPath,
}

#[derive(Debug, Clone, Serialize)]
struct ServerPath {
    path: PathBuf,
}

impl NbdServerStart {
    /// Listens on a unix socket.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self {
            addr: ServerAddress {
                kind: "unix",
                data: ServerPath { path },
            },
        }
    }
}

/// Stops the NBD server, with all of its exports and connections.
#[derive(Debug, Clone, Serialize)]
pub struct NbdServerStop;

/// Exports a node through the NBD server. A node of an incoming QEMU becomes active by it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportAdd {
    #[serde(rename = "type")]
    kind: &'static str,
    /// The export's id, for [`BlockExportDel`].
    pub id: String,
    /// The node.
    pub node_name: String,
    /// What clients call it.
    pub name: String,
    /// Whether clients may write.
    pub writable: bool,
}

impl BlockExportAdd {
    /// An NBD export.
    #[must_use]
    pub fn nbd(id: String, node_name: String, name: String, writable: bool) -> Self {
        Self {
            kind: "nbd",
            id,
            node_name,
            name,
            writable,
        }
    }
}

/// Removes an export, also from under its clients. It is gone with the event `BLOCK_EXPORT_DELETED`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockExportDel {
    /// The export's id.
    pub id: String,
    mode: &'static str,
}

impl BlockExportDel {
    /// Clients are cut off.
    #[must_use]
    pub fn hard(id: String) -> Self {
        Self { id, mode: "hard" }
    }
}

/// Asks for the exports.
#[derive(Debug, Clone, Serialize)]
pub struct QueryBlockExports;

/// An export.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportInfo {
    /// Its id.
    pub id: String,
    /// `nbd`, `vhost-user-blk`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The node.
    pub node_name: String,
    /// Whether it is on its way out.
    pub shutting_down: bool,
}

commands! {
    NbdServerStart = "nbd-server-start", within deadline::QMP_BLOCK => Done;
    NbdServerStop = "nbd-server-stop", within deadline::QMP_BLOCK => Done;
    BlockExportAdd = "block-export-add", within deadline::QMP_BLOCK => Done;
    BlockExportDel = "block-export-del", within deadline::QMP_BLOCK => Done;
    QueryBlockExports = "query-block-exports", within deadline::QMP_QUICK => Vec<BlockExportInfo>;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_server_and_its_exports_are_asked_for_as_qemu_wants_them() {
        assert_eq!(
            serde_json::to_value(NbdServerStart::unix("/run/x".into())).unwrap(),
            json!({"addr": {"type": "unix", "data": {"path": "/run/x"}}})
        );
        assert_eq!(
            serde_json::to_value(BlockExportAdd::nbd(
                "e".into(),
                "n".into(),
                "disk".into(),
                true
            ))
            .unwrap(),
            json!({"type": "nbd", "id": "e", "node-name": "n", "name": "disk", "writable": true})
        );
    }
}
