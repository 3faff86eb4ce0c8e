//! The VM's disks and where their data is.

use std::path::PathBuf;

use serde_json::Value;

use crate::migrate::error::{Doing as _, MigrateError};
use crate::qmp::Qmp;
use crate::qmp::command::{BlockInfo, QueryBlock};

/// A disk with a medium in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drive {
    /// QEMU's name of it: the same on both nodes.
    pub(super) id: String,
    pub(super) medium: Medium,
    pub(super) writable: bool,
}

/// Where a disk's data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Medium {
    /// A file or a block device.
    Path(PathBuf),
    /// Something that QEMU reaches by itself, by this driver or protocol.
    Other(String),
}

impl Medium {
    /// As QEMU names it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Other(name) => name.clone(),
        }
    }
}

/// All disks that have a medium.
pub(super) async fn drives(qmp: &Qmp) -> Result<Vec<Drive>, MigrateError> {
    let blocks = qmp
        .execute(QueryBlock)
        .await
        .doing("ask for the VM's disks")?;
    Ok(blocks.iter().filter_map(drive).collect())
}

fn drive(block: &BlockInfo) -> Option<Drive> {
    let file = block.file()?;
    let named = [
        Some(block.device.as_str()),
        block.qdev.as_deref(),
        block.node_name(),
    ];
    let id = named.into_iter().flatten().find(|name| !name.is_empty())?;
    Some(Drive {
        id: id.to_owned(),
        medium: medium(file),
        writable: block.read_only() == Some(false),
    })
}

/// QEMU's rule: a colon before the first slash ends a protocol's name (`path_has_protocol()`, block.c).
fn medium(file: &str) -> Medium {
    if let Some(options) = file.strip_prefix("json:") {
        return serde_json::from_str(options)
            .map_or_else(|_no_json| Medium::Other(file.to_owned()), |v| nested(&v));
    }
    if file.starts_with("/dev/fdset/") {
        return Medium::Other("a descriptor that QEMU was given".to_owned());
    }
    match file.split_once(':') {
        Some(("file" | "host_device", path)) => Medium::Path(path.into()),
        Some((protocol, _)) if !protocol.contains('/') => Medium::Other(protocol.to_owned()),
        _ => Medium::Path(file.into()),
    }
}

/// The lowest `file` of a graph of options.
fn nested(options: &Value) -> Medium {
    if let Some(file @ Value::Object(_)) = options.get("file") {
        return nested(file);
    }
    let text = |name| options.get(name).and_then(Value::as_str);
    match (text("driver"), text("filename")) {
        (Some("file" | "host_device"), Some(path)) => Medium::Path(path.into()),
        (driver, _) => Medium::Other(driver.unwrap_or("an unnamed driver").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Medium {
        Medium::Path(text.into())
    }

    fn other(text: &str) -> Medium {
        Medium::Other(text.into())
    }

    #[test]
    fn where_the_data_is_follows_from_qemus_name_for_it() {
        assert_eq!(medium("/var/lib/disk.raw"), path("/var/lib/disk.raw"));
        assert_eq!(medium("./a:b"), path("./a:b"));
        assert_eq!(medium("file:/v"), path("/v"));
        assert_eq!(medium("host_device:/dev/sdb"), path("/dev/sdb"));
        assert_eq!(medium("rbd:pool/image:conf=/etc/ceph.conf"), other("rbd"));
        assert_eq!(medium("nbd+unix:///x?socket=/y"), other("nbd+unix"));
        assert!(matches!(medium("/dev/fdset/3"), Medium::Other(_)));
        let raw = r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/v"}}"#;
        assert_eq!(medium(raw), path("/v"));
        let rbd = r#"json:{"driver":"raw","file":{"driver":"rbd","pool":"p","image":"i"}}"#;
        assert_eq!(medium(rbd), other("rbd"));
    }

    #[test]
    fn a_disk_has_the_name_that_both_qemus_give_it() {
        let block = |value| drive(&serde_json::from_value(value).unwrap());
        let inserted = json!({"file": "/v", "ro": false, "node-name": "#block123"});
        let old = json!({"device": "drive0", "qdev": "/machine/x", "inserted": inserted});
        assert_eq!(block(old).unwrap().id, "drive0");
        let new = json!({"device": "", "qdev": "disk0", "inserted": inserted});
        let new = block(new).unwrap();
        assert_eq!((new.id.as_str(), new.writable), ("disk0", true));
        assert_eq!(block(json!({"device": "cd0"})), None);
        let cd = json!({"device": "cd0", "inserted": {"file": "/i", "ro": true}});
        assert!(!block(cd).unwrap().writable);
    }
}
