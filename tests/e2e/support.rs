//! What all tests here ask of a migration.

use katamaran_tests::lab::Node;
use katamaran_tests::run::{Ended, MigrationRun, SideResult, Stage};
use serde_json::Value;

/// Returns from the test where it can't run.
macro_rules! require {
    ($($need:ident),+) => {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        if !katamaran_tests::need::met(&test, &[$(katamaran_tests::need::Need::$need),+]) {
            return;
        }
    };
}
pub(crate) use require;

/// What a side of a finished run left.
pub(crate) fn side(side: &Option<SideResult>) -> &SideResult {
    side.as_ref().expect("a run of katamaran has both sides")
}

/// The report that a side wrote.
#[track_caller]
pub(crate) fn report(side: &SideResult) -> &Value {
    let Some(report) = &side.report else {
        panic!("no report\n{}\n{}", side.stdout, side.stderr)
    };
    report
}

/// A number of a report.
#[track_caller]
pub(crate) fn number(report: &Value, pointer: &str) -> f64 {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("{pointer} is no number in {report:#}"))
}

/// Everything that is known about a run, for a failed assertion.
pub(crate) fn all(run: &MigrationRun) -> String {
    let told =
        |name: &str, side: &SideResult| format!("--- {name}\n{}{}", side.stdout, side.stderr);
    format!(
        "{}\nleaks: {:#?}\nsilence: {:?}\n{}\n{}",
        run.summary(),
        run.leaks,
        run.silence,
        told("source", side(&run.source)),
        told("dest", side(&run.dest))
    )
}

/// The same for a migration that was played by hand.
pub(crate) fn both(ended: &Ended) -> String {
    all(&MigrationRun {
        kind: "katamaran".to_owned(),
        leaks: ended.leaks.clone(),
        source: Some(ended.source.clone()),
        dest: Some(ended.dest.clone()),
        ..MigrationRun::default()
    })
}

/// Nothing is left but what belongs to a destination that was killed: nobody was left to clean up on B.
#[track_caller]
pub(crate) fn assert_clean_but_for_the_dead_destination(stage: &Stage, ended: &Ended) {
    let b = stage.lab.network().node(Node::B).name();
    let mut leaks = ended.leaks.clone();
    leaks.retain(|leak| {
        !leak.contains(b) && !leak.contains("/sys/fs/bpf") && !leak.contains("-dest")
    });
    assert_eq!(leaks, Vec::<String>::new(), "{}", both(ended));
}

/// What a killed destination has left outside of the lab's namespaces.
#[track_caller]
pub(crate) fn remove_what_the_dead_left(ended: &Ended) {
    let session = report(&ended.source)["session"].as_str().unwrap();
    for dir in [
        format!("/sys/fs/bpf/katamaran/{session}"),
        format!("/run/katamaran/{session}-destination"),
    ] {
        std::fs::remove_dir_all(dir).ok();
    }
}
