//! The part of a snapshot that no namespace holds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};

/// Where katamaran pins and keeps things.
const OWN_DIRS: [&str; 2] = ["/sys/fs/bpf/katamaran", "/run/katamaran"];

/// Everything below katamaran's own directories, without the directories themselves.
pub(super) fn files() -> Vec<String> {
    let mut lines = Vec::new();
    for dir in OWN_DIRS {
        walk(Path::new(dir), &mut lines);
    }
    lines
}

/// What one migration still has pinned or keeps as files; `session` is its id as in the reports.
#[must_use]
pub fn session_files(session: &str) -> Vec<String> {
    let mut lines = files();
    lines.retain(|line| line.contains(session));
    lines.iter_mut().for_each(|line| line.insert_str(0, "+ "));
    lines
}

fn walk(dir: &Path, lines: &mut Vec<String>) {
    // Not there, or just being removed: nothing in it.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Receipts are a result: a destination keeps them for a source that may ask.
        if path == Path::new("/run/katamaran/settled") {
            continue;
        }
        lines.push(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, lines);
        }
    }
}

/// The running children of this program, by command name.
pub(super) fn children() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for task in fs::read_dir("/proc/self/task")
        .context("list this program's threads")?
        .flatten()
    {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            lines.push(format!("process {pid} {}", name.trim()));
        }
    }
    Ok(lines)
}

/// BPF programs, maps and links of the whole machine.
pub(super) fn bpf_objects() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    // An object may go between being listed and being looked at: it is no leak then.
    for program in loaded_programs().flatten() {
        let name = program.name_as_str().unwrap_or("?");
        lines.push(format!("bpf program {} {name}", program.id()));
    }
    for map in loaded_maps().flatten() {
        lines.push(format!(
            "bpf map {} {}",
            map.id(),
            map.name_as_str().unwrap_or("?")
        ));
    }
    for link in loaded_links().flatten() {
        lines.push(format!(
            "bpf link {} of program {}",
            link.id(),
            link.program_id()
        ));
    }
    Ok(lines)
}
