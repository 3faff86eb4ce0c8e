//! Disks: what the guest has, and block nodes of our own.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Done, commands};
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

    /// Whether `id` names this disk: the back end, the node at its top, or the device that the guest
    /// sees, by the id that it was given on the command line.
    #[must_use]
    pub fn is_called(&self, id: &str) -> bool {
        !id.is_empty()
            && (self.device == id || self.node_name() == Some(id) || self.device_id() == Some(id))
    }

    /// The front end's id, if it was given one. `qdev` is that id, or a path where the disk is a part of the
    /// device: `/machine/peripheral/ID/virtio-backend`.
    #[must_use]
    pub fn device_id(&self) -> Option<&str> {
        let qdev = self.qdev.as_deref()?;
        let id = match qdev.strip_prefix("/machine/peripheral/") {
            Some(path) => path.split('/').next(),
            // A path of a device without an id says where it was put, and no more.
            None => Some(qdev).filter(|qdev| !qdev.starts_with('/')),
        };
        id.filter(|id| !id.is_empty())
    }

    /// What to call this disk when nobody has named it.
    #[must_use]
    pub fn best_name(&self) -> &str {
        [
            Some(self.device.as_str()),
            self.device_id(),
            self.node_name(),
        ]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .unwrap_or("(without a name)")
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

/// Asks for every block node, with or without a device on it.
#[derive(Debug, Clone, Serialize)]
pub struct QueryNamedBlockNodes {
    /// Leave out what each node is built on.
    pub flat: bool,
}

/// A block node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNodeInfo {
    /// Its name.
    pub node_name: Option<String>,
    /// Its driver.
    pub drv: String,
    /// The file or URL that it is on.
    pub file: Option<String>,
}

/// Adds a node that is a drive of an NBD server.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevAddNbd {
    driver: &'static str,
    /// The node's name: at most 31 characters.
    pub node_name: String,
    /// The connection to the server.
    pub server: PassedSocket,
    /// The name that the server exports the drive under.
    pub export: String,
    discard: &'static str,
}

impl BlockdevAddNbd {
    /// The drive `export` of the server that the descriptor `socket` is connected to. Discarded and zeroed
    /// ranges are passed on as such.
    #[must_use]
    pub fn new(node_name: String, socket: String, export: String) -> Self {
        Self {
            driver: "nbd",
            node_name,
            server: PassedSocket {
                kind: "fd",
                str: socket,
            },
            export,
            discard: "unmap",
        }
    }
}

/// A connected socket that QEMU was handed; see [`Qmp::hand_over`](crate::qmp::Qmp::hand_over).
#[derive(Debug, Clone, Serialize)]
pub struct PassedSocket {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Its name.
    pub str: String,
}

/// Removes a node that nothing uses.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    /// The node's name.
    pub node_name: String,
}

/// Breaks the connection of a block node (`yank`, qapi/yank.json): requests under way on it fail, and all that follow. Refused
/// for a node that has none.
#[derive(Debug, Clone, Serialize)]
pub struct Yank {
    instances: [YankInstance; 1],
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
struct YankInstance {
    #[serde(rename = "type")]
    kind: &'static str,
    node_name: String,
}

impl Yank {
    /// The connection of this node.
    #[must_use]
    pub fn node(node_name: String) -> Self {
        Self {
            instances: [YankInstance {
                kind: "block-node",
                node_name,
            }],
        }
    }
}

commands! {
    QueryBlock = "query-block", within deadline::QMP_QUICK => Vec<BlockInfo>;
    QueryNamedBlockNodes = "query-named-block-nodes", within deadline::QMP_QUICK => Vec<BlockNodeInfo>;
    BlockdevAddNbd = "blockdev-add", within deadline::NBD_OPEN => Done;
    BlockdevDel = "blockdev-del", within deadline::QMP_BLOCK => Done;
    Yank = "yank", within deadline::QMP_QUICK => Done;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(device: &str, qdev: Option<&str>, node: &str) -> BlockInfo {
        BlockInfo {
            device: device.into(),
            qdev: qdev.map(Into::into),
            inserted: Some(json!({"node-name": node})),
        }
    }

    #[test]
    fn a_disk_answers_to_its_back_end_its_node_and_its_device() {
        let old = info(
            "drive-virtio-disk0",
            Some("/machine/peripheral/virtio-disk0/virtio-backend"),
            "#block123",
        );
        for id in ["drive-virtio-disk0", "virtio-disk0", "#block123"] {
            assert!(old.is_called(id), "{id}");
        }
        for id in ["", "virtio-backend", "disk0", "drive-virtio-disk"] {
            assert!(!old.is_called(id), "{id}");
        }
        let new = info("", Some("scsi0"), "root");
        assert!(new.is_called("scsi0") && new.is_called("root") && !new.is_called(""));
        assert_eq!(new.best_name(), "scsi0");
        let nameless = info(
            "",
            Some("/machine/peripheral-anon/device[0]/virtio-backend"),
            "n",
        );
        assert!(!nameless.is_called("virtio-backend") && nameless.device_id().is_none());
    }

    #[test]
    fn an_nbd_node_is_asked_for_as_qemu_wants_it() {
        let add = BlockdevAddNbd::new("n0".into(), "fd0".into(), "disk".into());
        assert_eq!(
            serde_json::to_value(add).unwrap(),
            json!({
                "driver": "nbd", "node-name": "n0", "export": "disk", "discard": "unmap",
                "server": {"type": "fd", "str": "fd0"},
            })
        );
    }
}
