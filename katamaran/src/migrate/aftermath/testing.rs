//! What the tests here share.

use std::path::PathBuf;

use crate::journal::{Header, Receipts, Record, SCHEMA, Story, Tap};
use crate::role::Role;
use crate::session_id::SessionId;

/// A journal of these records.
pub(super) fn story(role: Role, records: &[Record]) -> Story {
    Story {
        header: Header {
            schema: SCHEMA,
            software: String::new(),
            session: SessionId(1),
            role,
            pid: 1,
            qmp: PathBuf::from("/qmp"),
            qemu: None,
            peer: "192.0.2.1".to_owned(),
            vm: Vec::new(),
            tap: Tap {
                name: "tap0".to_owned(),
                index: 2,
                netns: 3,
            },
            more_taps: Vec::new(),
            netns: 3,
            ends_qemu: true,
            receipts: Some(Receipts {
                discarded: "d".to_owned(),
                runs: "r".to_owned(),
            }),
            convergence_s: None,
        },
        since_us: 0,
        records: records.to_vec(),
    }
}
