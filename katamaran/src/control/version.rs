//! The choice of a protocol version.

/// The newest version that both sides know; the order of either list does not matter.
#[must_use]
pub fn select(offered: &[u16], supported: &[u16]) -> Option<u16> {
    offered
        .iter()
        .filter(|version| supported.contains(version))
        .max()
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(select(&[1, 2, 3], &[2, 1]), Some(2));
        assert_eq!(select(&[3, 1], &[1, 3, 4]), Some(3));
        assert_eq!(select(&[2, 2], &[2]), Some(2));
    }

    #[test]
    fn without_a_common_version_there_is_none() {
        assert_eq!(select(&[1], &[2]), None);
        assert_eq!(select(&[], &[1]), None);
        assert_eq!(select(&[1], &[]), None);
    }
}
