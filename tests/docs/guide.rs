//! The safety guide has what its readers need.

use crate::markdown::{Document, document};
use crate::yaml::manifests;

fn guide() -> Document {
    document("docs/kubevirt-migration.md")
}

#[test]
fn the_guide_is_complete() {
    let text = guide().text;
    assert!(text.lines().count() >= 150);
    for word in [
        "✅",
        "❌",
        "SAFE",
        "UNSAFE",
        "DATA CORRUPTION",
        "WARNING",
        "ReadWriteMany",
        "volumeMode: Block",
        "migrationTimeoutSeconds",
        "30-3600",
        "Distributed lock",
        "I/O fencing",
        "Cluster file system",
        "Write order",
        "GFS2",
        "OCFS2",
        "NFS",
        "MigrationStarted",
        "MigrationCompleted",
        "MigrationFailed",
        "--shared-storage",
        "--migration-timeout",
        "backup",
    ] {
        assert!(text.contains(word), "{word} is missing");
    }
}

#[test]
fn the_guide_has_a_section_for_every_question() {
    let anchors = guide().anchors();
    for part in [
        "overview",
        "safe",
        "unsafe",
        "why",
        "not-protected",
        "storageclass",
        "tuning",
        "metrics",
        "alerts",
        "events",
        "troubleshooting",
        "recovery",
        "future",
        "shared-storage",
    ] {
        assert!(
            anchors.iter().any(|anchor| anchor.contains(part)),
            "no heading for {part} in {anchors:#?}"
        );
    }
}

#[test]
fn both_the_safe_and_the_unsafe_use_are_shown_as_yaml() {
    let manifests: Vec<_> = manifests().into_iter().map(|(_, m)| m).collect();
    let of = |kind: &str| manifests.iter().filter(|m| m["kind"] == kind).count();
    assert!(of("PersistentVolumeClaim") >= 1);
    assert!(of("VirtualMachine") >= 1);
    assert!(of("StorageClass") >= 1);
    assert!(of("PrometheusRule") >= 1);
    let many_writers = manifests.iter().any(|m| {
        m["kind"] == "Deployment" && m["spec"]["replicas"].as_u64().is_some_and(|n| n > 1)
    });
    assert!(many_writers, "what not to do is not shown");
    for claim in manifests
        .iter()
        .filter(|m| m["kind"] == "PersistentVolumeClaim")
    {
        assert_eq!(claim["spec"]["volumeMode"], "Block", "{claim:#}");
    }
}
