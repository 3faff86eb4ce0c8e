//! YAML.

use serde_json::Value;

use crate::markdown::documents;

/// All YAML documents of all blocks, each with where it is.
pub(crate) fn manifests() -> Vec<(String, Value)> {
    let mut manifests = Vec::new();
    for document in documents() {
        for block in document.blocks(&["yaml"]) {
            let parsed: Vec<Value> = serde_saphyr::from_multiple(&block.text)
                .unwrap_or_else(|error| panic!("{}: {error}", block.at));
            manifests.extend(parsed.into_iter().map(|value| (block.at.clone(), value)));
        }
    }
    manifests
}

#[test]
fn every_yaml_block_is_a_kubernetes_object() {
    let manifests = manifests();
    assert!(!manifests.is_empty());
    for (at, manifest) in manifests {
        for field in ["apiVersion", "kind"] {
            assert!(
                manifest[field].is_string(),
                "{at}: no {field} in {manifest:#}"
            );
        }
        assert!(manifest["metadata"]["name"].is_string(), "{at}: no name");
    }
}

#[test]
fn migration_timeouts_are_text_and_in_range() {
    let classes = manifests()
        .into_iter()
        .filter(|(_, manifest)| manifest["kind"] == "StorageClass");
    let mut timeouts = 0;
    for (at, class) in classes {
        // Parameters of a StorageClass are strings; a number is refused by the API server.
        let timeout = class["parameters"]["migrationTimeoutSeconds"]
            .as_str()
            .unwrap_or_else(|| panic!("{at}: no migrationTimeoutSeconds in quotes"));
        assert!(
            (30..=3600).contains(&timeout.parse::<u32>().unwrap()),
            "{at}: {timeout}"
        );
        timeouts += 1;
    }
    assert!(timeouts > 0);
}
