//! `cargo xtask fuzz`: builds the fuzz targets, runs them under libFuzzer and prints a line for each.
//!
//! No nightly and no cargo-fuzz: the instrumentation is an LLVM pass that a stable rustc has, too. Only the
//! workspace's own crates get it (through cargo's wrapper for them, which is this very program), so that the
//! dependencies are those of every release build, and the coverage is of our code.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, bail, ensure};

use crate::steps::cargo;

/// Set where this program stands in for rustc.
const AS_RUSTC: &str = "KATAMARAN_FUZZ_RUSTC";

/// What instruments a crate, as cargo-fuzz does, and finds arithmetic that overflows.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // What more takes twice as long to build, and runs hardly faster.
    "-Copt-level=1",
    "-Coverflow-checks=on",
    "-Cdebug-assertions=on",
];

/// The crates that are instrumented, as rustc names them.
const INSTRUMENTED: &[&str] = &["katamaran", "katamaran_common", "katamaran_fuzz"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this target (a directory of fuzz/corpus)
    target: Option<String>,

    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u32,

    /// Begins with the committed corpus alone, not with what earlier runs have found
    #[arg(long)]
    fresh: bool,

    /// Replaces the committed corpus by the fewest inputs that cover what all runs here have covered
    #[arg(long)]
    keep: bool,
}

/// What one target came to.
struct Outcome {
    executions: String,
    a_second: String,
    edges: String,
    corpus: usize,
    peak_mib: String,
    crash: Option<PathBuf>,
}

impl Outcome {
    fn print(&self, target: &str) {
        let crashes = match &self.crash {
            Some(input) => format!("1: {}", input.display()),
            None => "0".to_owned(),
        };
        println!(
            "{target:<12} {:>11} {:>9} {:>7} {:>7} {:>9}  {crashes}",
            self.executions, self.a_second, self.edges, self.corpus, self.peak_mib
        );
    }
}

/// Runs rustc with the flags for fuzzing, if that is what cargo has called this program for.
pub(crate) fn as_rustc() -> Option<ExitCode> {
    env::var_os(AS_RUSTC)?;
    let mut arguments = env::args_os().skip(1);
    let mut rustc = Command::new(arguments.next()?);
    let arguments: Vec<OsString> = arguments.collect();
    let name = arguments
        .iter()
        .position(|argument| argument == "--crate-name")
        .and_then(|at| arguments.get(at + 1)?.to_str());
    rustc.args(&arguments);
    if name.is_some_and(|name| INSTRUMENTED.contains(&name)) {
        rustc.args(FLAGS);
    }
    let error = rustc.exec();
    eprintln!("xtask: start {}: {error}", rustc.get_program().display());
    Some(ExitCode::FAILURE)
}

/// What CI runs.
pub(crate) fn briefly(root: &Path) -> anyhow::Result<ExitCode> {
    let options = Options {
        target: None,
        seconds: 4,
        fresh: true,
        keep: false,
    };
    run(root, &options)
}

/// clippy for the targets: a run of its own, because katamaran's features would be unified otherwise.
pub(crate) fn clippy(root: &Path) -> Command {
    let mut command = cargo(root);
    command.args(["clippy", "-p", "katamaran-fuzz", "--", "-D", "warnings"]);
    command
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let targets = targets(root, options.target.as_deref())?;
    let program = build(root)?;
    println!(
        "{:<12} {:>11} {:>9} {:>7} {:>7} {:>9}  crashes",
        "target", "executions", "a second", "edges", "corpus", "peak MiB"
    );
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut crashed = 0;
    for some in targets.chunks(processors) {
        let outcomes: Vec<anyhow::Result<(Place, Outcome)>> = thread::scope(|scope| {
            let runs: Vec<_> = some
                .iter()
                .map(|target| scope.spawn(|| Place::new(root, target)?.run(&program, options)))
                .collect();
            runs.into_iter()
                .map(|run| run.join().expect("a panic has been told already"))
                .collect()
        });
        for outcome in outcomes {
            let (place, outcome) = outcome?;
            outcome.print(&place.target);
            if let Some(input) = &outcome.crash {
                crashed += 1;
                eprintln!("{}", place.last_words()?);
                eprintln!(
                    "again: KATAMARAN_FUZZ={} {} {}",
                    place.target,
                    program.display(),
                    input.display()
                );
            }
        }
    }
    Ok(match crashed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The targets: what has a corpus.
fn targets(root: &Path, only: Option<&str>) -> anyhow::Result<Vec<String>> {
    let corpus = root.join("fuzz/corpus");
    let mut names = Vec::new();
    let entries = fs::read_dir(&corpus).with_context(|| format!("list {}", corpus.display()))?;
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if let Some(only) = only {
        ensure!(
            names.iter().any(|name| name == only),
            "no target {only:?}; there are {}",
            names.join(", ")
        );
        names.retain(|name| name == only);
    }
    Ok(names)
}

fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let status = cargo(root)
        .args(["build", "--locked", "--quiet", "--release"])
        .args(["-p", "katamaran-fuzz", "--features", "run"])
        .env("RUSTC_WORKSPACE_WRAPPER", env::current_exe()?)
        .env(AS_RUSTC, "1")
        .status()
        .context("start cargo")?;
    ensure!(
        status.success(),
        "the fuzz targets can't be built ({status}); libFuzzer takes a C++ compiler"
    );
    Ok(root.join("target/release/katamaran-fuzz"))
}

/// Where one target's files are.
struct Place {
    target: String,
    /// Committed.
    seeds: PathBuf,
    /// What runs on this machine have found.
    found: PathBuf,
    /// Everything else.
    work: PathBuf,
}

impl Place {
    fn new(root: &Path, target: &str) -> anyhow::Result<Self> {
        let work = root.join("target/fuzz").join(target);
        let found = work.join("found");
        fs::create_dir_all(&found).with_context(|| format!("create {}", found.display()))?;
        Ok(Self {
            target: target.to_owned(),
            seeds: root.join("fuzz/corpus").join(target),
            found,
            work,
        })
    }

    fn run(self, program: &Path, options: &Options) -> anyhow::Result<(Self, Outcome)> {
        let outcome = self.fuzz(program, options)?;
        if options.keep && outcome.crash.is_none() {
            self.keep(program)?;
        }
        Ok((self, outcome))
    }

    fn fuzz(&self, program: &Path, options: &Options) -> anyhow::Result<Outcome> {
        if options.fresh {
            fs::remove_dir_all(&self.found).context("forget what earlier runs have found")?;
            fs::create_dir(&self.found).context("begin anew")?;
        }
        let mut artifacts = OsString::from("-artifact_prefix=");
        artifacts.push(self.work.join(""));
        let log = fs::File::create(self.log()).context("create the log")?;
        let status = self
            .command(program)
            .arg(format!("-max_total_time={}", options.seconds))
            .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=1024"])
            .arg(&artifacts)
            .args([&self.found, &self.seeds])
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .status()
            .with_context(|| format!("start {}", program.display()))?;
        let said = fs::read_to_string(self.log()).context("read the log")?;
        let crash = said
            .lines()
            .find_map(|line| line.split_once("Test unit written to "))
            .map(|(_, path)| PathBuf::from(path.trim()));
        if !status.success() && crash.is_none() {
            bail!("{} {status}:\n{}", self.target, self.last_words()?);
        }
        Ok(Outcome {
            executions: statistic(&said, "number_of_executed_units"),
            a_second: statistic(&said, "average_exec_per_sec"),
            edges: edges(&said),
            corpus: fs::read_dir(&self.found)?.count() + fs::read_dir(&self.seeds)?.count(),
            peak_mib: statistic(&said, "peak_rss_mb"),
            crash,
        })
    }

    /// Merges everything into what is committed.
    fn keep(&self, program: &Path) -> anyhow::Result<()> {
        let fewest = self.work.join("fewest");
        if fewest.exists() {
            fs::remove_dir_all(&fewest).context("forget an earlier merge")?;
        }
        fs::create_dir(&fewest).context("create a directory to merge into")?;
        let output = self
            .command(program)
            .args([OsStr::new("-merge=1"), fewest.as_os_str()])
            .args([&self.seeds, &self.found])
            .output()
            .context("merge")?;
        ensure!(output.status.success(), "merge: {}", output.status);
        for entry in fs::read_dir(&self.seeds)? {
            fs::remove_file(entry?.path()).context("remove an input")?;
        }
        for entry in fs::read_dir(&fewest)? {
            let entry = entry?;
            fs::copy(entry.path(), self.seeds.join(entry.file_name())).context("keep an input")?;
        }
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KATAMARAN_FUZZ", &self.target)
            .current_dir(&self.work);
        command
    }

    fn log(&self) -> PathBuf {
        self.work.join("last.log")
    }

    fn last_words(&self) -> anyhow::Result<String> {
        let said = fs::read_to_string(self.log()).context("read the log")?;
        let lines: Vec<&str> = said.lines().collect();
        Ok(lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

/// A number of libFuzzer's last lines.
fn statistic(said: &str, name: &str) -> String {
    let mark = format!("stat::{name}:");
    said.lines()
        .find_map(|line| line.strip_prefix(&mark))
        .map_or("-".to_owned(), |number| number.trim().to_owned())
}

/// The edges of the last line that counts them.
fn edges(said: &str) -> String {
    said.lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split(' ').next())
        .unwrap_or("-")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_read_from_what_libfuzzer_says() {
        let said = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                    #9\tDONE   cov: 34 ft: 50 corp: 2/3b exec/s: 9 rss: 31Mb\n\
                    Done 9 runs in 1 second(s)\n\
                    stat::number_of_executed_units: 9\n\
                    stat::peak_rss_mb:              31\n";
        assert_eq!(edges(said), "34");
        assert_eq!(statistic(said, "number_of_executed_units"), "9");
        assert_eq!(statistic(said, "peak_rss_mb"), "31");
        assert_eq!(statistic(said, "average_exec_per_sec"), "-");
    }
}
