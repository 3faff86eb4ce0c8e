//! `cargo xtask test`: everything that `./scripts/test.sh` runs, cheap first.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::steps::{Steps, cargo};
use crate::{build_ebpf, fuzz, tidy};

/// What the machine that runs the whole suite must be able to do: a skip there is a failure.
const REQUIRED: &str = "root,bpf,qemu,lab,prometheus";

/// The part that needs neither root nor QEMU nor an eBPF toolchain.
pub(crate) fn smoke(root: &Path) -> ExitCode {
    let mut steps = Steps::default();
    static_checks(root, &mut steps);
    unprivileged_tests(root, &mut steps);
    steps.finish()
}

/// Everything.
pub(crate) fn all(root: &Path) -> ExitCode {
    let mut steps = Steps::default();
    steps.step("build the eBPF programs", || {
        build_ebpf::ensure(root).map_err(|e| format!("{e:#}"))
    });
    static_checks(root, &mut steps);
    steps.command(
        "clippy for the eBPF programs",
        &mut build_ebpf::clippy(root),
    );
    steps.command("clippy for the fuzz targets", &mut fuzz::clippy(root));
    unprivileged_tests(root, &mut steps);
    let mut prometheus = cargo(root);
    prometheus.args([
        "test",
        "-p",
        "katamaran-tests",
        "--test",
        "docs",
        "prometheus",
    ]);
    steps.command(
        "what Prometheus says of the metrics",
        prometheus.env("KATAMARAN_REQUIRE", REQUIRED),
    );
    steps.command(
        "build katamaran and the lab",
        cargo(root).args([
            "build",
            "--release",
            "-p",
            "katamaran",
            "-p",
            "katamaran-tests",
            "--bins",
        ]),
    );
    steps.step(
        "fuzzing, from the committed corpus",
        || match fuzz::briefly(root) {
            Ok(code) if code == ExitCode::SUCCESS => Ok(()),
            Ok(_crashed) => Err("an input breaks what must hold: it is shown above".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        },
    );
    for (name, test) in [
        ("the node's network (real kernel)", "netns"),
        ("the data path (real kernel)", "dataplane"),
        ("katamaran trace (real kernel)", "trace"),
        ("shared volumes (real locks, NFS, reservations)", "volume"),
        ("the lab itself (real QEMU)", "lab"),
        ("migrations (real QEMU)", "e2e"),
    ] {
        let mut command = cargo(root);
        command.args(["test", "--release", "-p", "katamaran-tests", "--test", test]);
        command
            .args(["--", "--test-threads=1"])
            .env("KATAMARAN_REQUIRE", REQUIRED);
        if test == "volume"
            && let Some(program) = library_tests(root)
        {
            command.env("KATAMARAN_LIB_TESTS", program);
        }
        steps.command(name, &mut command);
    }
    for (name, arguments) in [
        (
            "migrations in a row, beside plain QEMU's",
            "soak --runs 2 --qemu both --interleave-plain",
        ),
        (
            "migrations on each kernel, through each tunnel, on each wiring (stand-in for QEMU)",
            "matrix --quick",
        ),
        (
            "what keeps packets from being lost, taken away",
            "ablations",
        ),
        ("migrations cancelled at random moments", "cancel --runs 10"),
        ("one VM there and back", "shuttle --runs 10"),
        ("many VMs of one node at the same time", "crowd"),
        (
            "migrations of disks that are written to flat out",
            "soak --drives 3 --runs 2 --qemu both",
        ),
        ("whatever breaks, above all around COMMIT", "faults --quick"),
        (
            "the mirror's throughput, beside QEMU's own",
            "bench mirror --rounds 3",
        ),
        (
            "what a redirected packet costs, beside the kernel's tunnel",
            "bench redirect --rounds 5 --packets 20000",
        ),
    ] {
        let mut command = Command::new(root.join("target/release/katamaran-lab"));
        command.args(arguments.split(' ')).current_dir(root);
        steps.command(name, &mut command);
    }
    steps.finish()
}

/// The model check, with what it prints.
pub(crate) fn model(root: &Path) -> anyhow::Result<ExitCode> {
    let status = model_check(root).status()?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn model_check(root: &Path) -> Command {
    let mut command = cargo(root);
    command.args([
        "test",
        "--quiet",
        "-p",
        "katamaran",
        "--lib",
        "aftermath::model",
    ]);
    command.args(["--", "--nocapture", "--test-threads=1"]);
    command
}

fn static_checks(root: &Path, steps: &mut Steps) {
    steps.command("formatting", cargo(root).args(["fmt", "--all", "--check"]));
    steps.step("house rules", || tidy::check(root));
    steps.step("shell scripts parse", || shell_scripts(root));
    steps.command(
        "clippy",
        cargo(root).args(["clippy", "--all-targets", "--", "-D", "warnings"]),
    );
    steps.command(
        "documentation",
        cargo(root)
            .args(["doc", "--no-deps", "--document-private-items"])
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private_intra_doc_links",
            ),
    );
}

fn unprivileged_tests(root: &Path, steps: &mut Steps) {
    steps.command(
        "unit and protocol tests",
        cargo(root).args([
            "test",
            "-p",
            "katamaran",
            "-p",
            "katamaran-common",
            "-p",
            "xtask",
        ]),
    );
    steps.command("the commit protocol, exhausted", &mut model_check(root));
    // The tests run the program as users do; cargo builds no programs of other packages for a test.
    steps.command(
        "build the command",
        cargo(root).args(["build", "-p", "katamaran"]),
    );
    steps.command(
        "command line",
        cargo(root).args(["test", "-p", "katamaran-tests", "--lib", "--test", "cli"]),
    );
    steps.command(
        "the documentation is true",
        cargo(root).args(["test", "-p", "katamaran-tests", "--test", "docs"]),
    );
}

/// The program of the library's own unit tests: some of them are run again under a kernel that has what they
/// need.
fn library_tests(root: &Path) -> Option<String> {
    let built = cargo(root)
        .args(["test", "-p", "katamaran", "--lib", "--no-run"])
        .args(["--message-format=json", "--quiet"])
        .output()
        .ok()?;
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
}

fn shell_scripts(root: &Path) -> Result<(), String> {
    let listed = Command::new("git")
        .args(["ls-files", "*.sh", ".ci/run"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("git ls-files: {e}"))?;
    let mut bad = Vec::new();
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        let parsed = Command::new("bash")
            .args(["-n", file])
            .current_dir(root)
            .status();
        if !parsed.is_ok_and(|status| status.success()) {
            bad.push(file.to_owned());
        }
    }
    if bad.is_empty() {
        Ok(())
    } else {
        Err(bad.join(", "))
    }
}
