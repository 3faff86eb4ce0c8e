//! The identity of one migration.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identifies one migration on both nodes: in names of kernel objects, in the preamble of each
/// connection, in logs and in the report. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SessionId(pub u64);

/// The text is not 16 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a session id (16 hexadecimal digits): {0:?}")]
pub struct InvalidSessionId(String);

impl SessionId {
    /// A fresh, random id.
    #[must_use]
    pub fn random() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        // RandomState is seeded from the operating system's randomness once per thread and
        // stepped at each use; ids need to be unique, not secret.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u128(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos()),
        );
        Self(hasher.finish())
    }

    /// The id by which the `nic`th network card of this migration goes in names of kernel objects; the first goes by the migration's own.
    /// They differ in the first digits, too.
    #[must_use]
    pub fn of_nic(self, nic: usize) -> Self {
        /// An odd number: no two multiples of it are the same.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        Self(self.0.wrapping_add(STEP.wrapping_mul(nic as u64)))
    }

    /// The first `digits` hexadecimal digits, for names with little room (IFNAMSIZ).
    #[must_use]
    pub fn short(self, digits: usize) -> String {
        let mut text = self.to_string();
        text.truncate(digits);
        text
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidSessionId(text.to_owned()));
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_not_hexadecimal| InvalidSessionId(text.to_owned()))
    }
}

impl TryFrom<String> for SessionId {
    type Error = InvalidSessionId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text() {
        let id = SessionId(0x00ab_cdef_0123_4567);
        assert_eq!(id.to_string(), "00abcdef01234567");
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        assert!("00abcdef0123456".parse::<SessionId>().is_err());
        assert!("+0abcdef01234567".parse::<SessionId>().is_err());
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(SessionId::random(), SessionId::random());
    }
}
