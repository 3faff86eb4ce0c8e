//! The modules of a kernel, found through the indexes that come with them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The directory of a kernel's modules, after `depmod`.
#[derive(Debug)]
pub(super) struct Modules {
    directory: PathBuf,
    /// Each module's file by the module's name.
    files: HashMap<String, String>,
    /// What each file needs, as `modules.dep` has it: the last one must be loaded first.
    needs: HashMap<String, Vec<String>>,
    built_in: Vec<String>,
}

impl Modules {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let index = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path)
                .with_context(|| format!("read {}: has scripts/setup.sh been run?", path.display()))
        };
        let mut files = HashMap::new();
        let mut needs = HashMap::new();
        for line in index("modules.dep")?.lines() {
            let Some((file, list)) = line.split_once(':') else {
                continue;
            };
            files.insert(module_name(file), file.to_owned());
            let list = list.split_whitespace().map(str::to_owned).collect();
            needs.insert(file.to_owned(), list);
        }
        let built_in = index("modules.builtin")?.lines().map(module_name).collect();
        Ok(Self {
            directory: directory.to_owned(),
            files,
            needs,
            built_in,
        })
    }

    /// These modules and all that they need, in the order in which they can be loaded: name and content. What
    /// is part of the kernel itself is left out.
    pub(super) fn with_dependencies(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut ordered: Vec<&str> = Vec::new();
        for name in names {
            let Some(file) = self.files.get(*name) else {
                if self.built_in.iter().any(|known| known == name) {
                    continue;
                }
                bail!("{} has no module {name}", self.directory.display());
            };
            let needed = self.needs.get(file).into_iter().flatten().rev();
            for file in needed.chain([file]) {
                if !ordered.contains(&file.as_str()) {
                    ordered.push(file);
                }
            }
        }
        ordered
            .into_iter()
            .map(|file| Ok((module_name(file), read(&self.directory.join(file))?)))
            .collect()
    }
}

/// `kernel/net/sched/sch_plug.ko.xz` is `sch_plug`. Kernels take `-` and `_` in a name as the same.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("read {}", file.display()));
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(file)
        .output()
        .context("start xz")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("unpack {}: {}", file.display(), said.trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| fs::write(directory.path().join(name), content);
        file(
            "modules.dep",
            "a-x.ko: b.ko c.ko\nb.ko: c.ko\nc.ko:\nd.ko: b.ko c.ko\n",
        )
        .unwrap();
        file("modules.builtin", "kernel/e.ko\n").unwrap();
        for name in ["a-x", "b", "c", "d"] {
            file(&format!("{name}.ko"), name).unwrap();
        }
        let modules = Modules::open(directory.path()).unwrap();
        let order = modules.with_dependencies(&["a_x", "e", "d"]).unwrap();
        let names: Vec<_> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a_x", "d"]);
        assert_eq!(order[2].1, b"a-x");
        assert!(modules.with_dependencies(&["f"]).is_err());
    }
}
