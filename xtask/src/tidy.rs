//! `cargo xtask tidy`: the project's own rules, those that no other tool knows.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file; split by then.
const MAX_LINES: usize = 500;

/// `(directory, text that must not appear in it, why)`.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    (
        "katamaran/src",
        "Command::new(",
        "the product executes no programs",
    ),
    (
        "katamaran/src/qmp",
        "crate::net",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/qmp",
        "crate::control",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/qmp",
        "crate::migrate",
        "leaves do not import upwards",
    ),
    (
        "katamaran/src/net",
        "crate::qmp",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/net",
        "crate::ebpf",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/net",
        "crate::migrate",
        "leaves do not import upwards",
    ),
    (
        "katamaran/src/ebpf",
        "crate::net",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/ebpf",
        "crate::qmp",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/ebpf",
        "crate::migrate",
        "leaves do not import upwards",
    ),
    (
        "katamaran/src/control",
        "crate::migrate",
        "leaves do not import upwards",
    ),
    (
        "katamaran/src/control",
        "crate::qmp",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/relay",
        "crate::migrate",
        "leaves do not import upwards",
    ),
    (
        "katamaran/src/nbd",
        "crate::qmp",
        "leaves do not import each other",
    ),
    (
        "katamaran/src/nbd",
        "crate::migrate",
        "leaves do not import upwards",
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
