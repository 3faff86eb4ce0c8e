//! Flags about drives.

use super::Config;
use super::tests::{SOURCE, config, refused};

#[test]
fn drives_are_named_once_and_by_a_name() {
    let ids = |extra: &[&str]| match config(SOURCE, extra).unwrap() {
        Config::Source(c) => c.common.drive_ids,
        Config::Destination(_) => None,
    };
    assert_eq!(ids(&[]), None);
    assert_eq!(
        ids(&["--drive-id", "a,b"]),
        Some(vec!["a".into(), "b".into()])
    );
    assert!(refused(SOURCE, &["--drive-id", "a,b,a"]).contains("a twice"));
    assert!(refused(SOURCE, &["--drive-id", "a,,b"]).contains("empty name"));
    assert!(refused(SOURCE, &["--drive-id", ""]).contains("empty name"));
}

#[test]
fn what_is_about_mirrored_drives_is_refused_with_shared_ones() {
    let mirrored: Vec<&str> = SOURCE
        .iter()
        .copied()
        .filter(|a| *a != "--shared-storage")
        .collect();
    for flags in [
        &["--bandwidth", "200M"][..],
        &["--verify-storage"],
        &["--storage-sync-timeout", "60"],
    ] {
        assert!(config(&mirrored, flags).is_ok(), "{flags:?}");
    }
    for flags in [&["--bandwidth", "200M"][..], &["--verify-storage"]] {
        assert!(refused(SOURCE, flags).contains("--shared-storage"));
    }
    assert!(refused(&mirrored, &["--bandwidth", "much"]).contains("much"));
    assert!(refused(&mirrored, &["--storage-sync-timeout", "0"]).contains("1-604800 seconds"));
}
