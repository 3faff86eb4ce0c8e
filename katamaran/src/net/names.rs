//! Names of the kernel objects that we create.
//!
//! A device is called `ktm`, a letter for the role, and the first 11 hexadecimal digits of the
//! session's id: exactly the 15 bytes that a name may have. So leftovers can be recognised in
//! `ip link` and swept, and parallel migrations do not meet.

use crate::role::Role;
use crate::session_id::SessionId;

/// Longest name of a device in bytes, without the closing zero (IFNAMSIZ - 1).
pub const LINK_NAME_MAX: usize = 15;

const PREFIX: &str = "ktm";
const ID_DIGITS: usize = 11;

/// The major number of the handles of our queueing disciplines (`4b54:`, "KT").
pub const QDISC_MAJOR: u16 = 0x4b54;

/// The name of the session's device on one side, for example `ktms3f00c1d2e4b`.
#[must_use]
pub fn session_link(role: Role, session: SessionId) -> String {
    let letter = match role {
        Role::Source => 's',
        Role::Destination => 'd',
    };
    format!("{PREFIX}{letter}{}", session.short(ID_DIGITS))
}

/// The name of the session's pair of devices between a pod and its node, on both ends: `ktml...`.
#[must_use]
pub fn detour_link(session: SessionId) -> String {
    format!("{PREFIX}l{}", session.short(ID_DIGITS))
}

/// The VXLAN network identifier of a session: its low 24 bits, never 0.
#[must_use]
pub fn session_vni(session: SessionId) -> u32 {
    let [.., a, b, c] = session.0.to_be_bytes();
    u32::from_be_bytes([0, a, b, c]).max(1)
}

/// Takes a device name apart: the role and the first digits of the session's id, or `None` if the
/// device is not one of ours.
#[must_use]
pub fn parse_session_link(name: &str) -> Option<(Role, &str)> {
    let rest = name.strip_prefix(PREFIX)?;
    let (role, digits) = if let Some(digits) = rest.strip_prefix('s') {
        (Role::Source, digits)
    } else {
        (Role::Destination, rest.strip_prefix('d')?)
    };
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (digits.len() == ID_DIGITS && digits.bytes().all(hex)).then_some((role, digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_and_can_be_read_back() {
        let session = SessionId(0x0123_4567_89ab_cdef);
        for role in [Role::Source, Role::Destination] {
            let name = session_link(role, session);
            assert_eq!(name.len(), LINK_NAME_MAX);
            assert_eq!(parse_session_link(&name), Some((role, "0123456789a")));
        }
    }

    #[test]
    fn foreign_names_are_left_alone() {
        for name in [
            "ktm",
            "ktms",
            "ktmx0123456789a",
            "ktms0123456789",
            "eth0",
            "ktms0123456789G",
        ] {
            assert_eq!(parse_session_link(name), None, "{name}");
        }
    }

    #[test]
    fn a_vni_has_24_bits_and_is_not_zero() {
        assert_eq!(session_vni(SessionId(0xffff_ffff_ff12_3456)), 0x12_3456);
        assert_eq!(session_vni(SessionId(0xffff_ffff_ff00_0000)), 1);
    }
}
