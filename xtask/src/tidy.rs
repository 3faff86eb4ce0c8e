//! `cargo xtask tidy`: the project's own rules, those that no other tool knows.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file; split by then.
const MAX_LINES: usize = 500;

/// Modules at the bottom: they know neither each other nor the migration.
const LEAVES: &[&str] = &[
    "conntrack",
    "control",
    "ebpf",
    "journal",
    "metrics",
    "nbd",
    "net",
    "qmp",
    "relay",
    "volume",
];

/// `(directory, text that must not appear in it, why)`.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    (
        "katamaran/src",
        "Command::new(",
        "the product executes no programs",
    ),
    ("katamaran/src/migrate", "use aya", "aya stays in ebpf"),
    (
        "katamaran/src/migrate",
        "rtnetlink::",
        "netlink stays in net",
    ),
    (
        "katamaran/src/migrate",
        "netlink_packet",
        "netlink stays in net",
    ),
    ("katamaran/src/preflight", "use aya", "aya stays in ebpf"),
    (
        "katamaran/src/preflight",
        "netlink_packet",
        "netlink stays in net",
    ),
    (
        "katamaran/src/migrate",
        "prometheus::",
        "the exposition format stays in metrics",
    ),
];

/// Checks every rule.
///
/// # Errors
/// All violations, one a line.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut violations = Vec::new();
    let mut files = Vec::new();
    collect(root, &mut files);
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else {
            continue;
        };
        let name = file
            .strip_prefix(root)
            .unwrap_or(file)
            .display()
            .to_string();
        let lines = text.lines().count();
        if lines > MAX_LINES {
            violations.push(format!("{name}: {lines} lines, at most {MAX_LINES}"));
        }
        for (place, what, why) in FORBIDDEN {
            if name.starts_with(&format!("{place}/")) && text.contains(what) {
                violations.push(format!("{name}: contains `{what}`: {why}"));
            }
        }
        violations.extend(
            imports_of_a_leaf(&name, &text).map(|what| format!("{name}: a leaf imports `{what}`")),
        );
        if !name.starts_with("xtask/") && (text.contains("todo!(") || text.contains("#[ignore")) {
            violations.push(format!(
                "{name}: unfinished code or a test that does not run"
            ));
        }
    }
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("\n      {}", violations.join("\n      ")))
    }
}

/// What a leaf's file names of other leaves and of what is above it.
fn imports_of_a_leaf<'a>(name: &'a str, text: &'a str) -> impl Iterator<Item = String> + 'a {
    let leaf = LEAVES
        .iter()
        .find(|leaf| name.starts_with(&format!("katamaran/src/{leaf}/")));
    let others = LEAVES
        .iter()
        .chain(&["migrate"])
        .filter(move |other| leaf.is_some() && leaf != Some(other));
    others
        .map(|other| format!("crate::{other}::"))
        .filter(|path| text.contains(path))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_named_with_its_file() {
        let root = std::env::temp_dir().join(format!("ktm-tidy-{}", std::process::id()));
        let place = root.join("katamaran/src/net");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("bad.rs"), "use crate::qmp::Qmp;\n").unwrap();
        let text = check(&root).unwrap_err();
        fs::remove_dir_all(&root).unwrap();
        assert!(
            text.contains("katamaran/src/net/bad.rs") && text.contains("crate::qmp"),
            "{text}"
        );
    }
}
