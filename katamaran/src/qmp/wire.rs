//! The JSON of QMP lines.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::error::ErrorClass;

/// A release of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuVersion {
    /// Major release, the 7 of 7.2.22.
    pub major: u32,
    /// Minor release.
    pub minor: u32,
    /// Stable release.
    pub micro: u32,
    /// What the packager calls it; may be empty.
    pub package: String,
}

impl QemuVersion {
    /// Whether this is at least `major.minor`.
    #[must_use]
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl<'de> Deserialize<'de> for QemuVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            qemu: Numbers,
            #[serde(default)]
            package: String,
        }
        #[derive(Deserialize)]
        struct Numbers {
            major: u32,
            minor: u32,
            micro: u32,
        }
        let Wire { qemu, package } = Wire::deserialize(deserializer)?;
        Ok(Self {
            major: qemu.major,
            minor: qemu.minor,
            micro: qemu.micro,
            package,
        })
    }
}

/// The first line of a monitor.
#[derive(Debug, Deserialize)]
pub(super) struct Greeting {
    #[serde(rename = "QMP")]
    pub(super) qmp: GreetingBody,
}

#[derive(Debug, Deserialize)]
pub(super) struct GreetingBody {
    pub(super) version: QemuVersion,
}

/// A command line.
#[derive(Debug, Serialize)]
pub(super) struct Execute<'a> {
    pub(super) execute: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) arguments: Value,
    pub(super) id: u64,
}

/// Any line after the greeting: an event or a reply.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) id: Option<u64>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    pub(super) returned: Option<Value>,
    pub(super) error: Option<ErrorBody>,
    pub(super) event: Option<String>,
    #[serde(default)]
    pub(super) data: Value,
    pub(super) timestamp: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) class: ErrorClass,
    pub(super) desc: String,
}

/// Both are -1 when QEMU could not read its clock.
#[derive(Debug, Deserialize)]
pub(super) struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

impl Timestamp {
    /// Microseconds since the epoch.
    pub(super) fn micros(&self) -> Option<u64> {
        let seconds = u64::try_from(self.seconds).ok()?;
        let micros = u64::try_from(self.microseconds).ok()?;
        seconds.checked_mul(1_000_000)?.checked_add(micros)
    }
}

/// Keeps `"return": null` apart from no `return` at all.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}
